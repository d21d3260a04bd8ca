"""How good a model is by a function of the user's, with and without limits of accumulators."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.model.prepare import has_quantizers
from brevitas_axe.model.running import float_twin
from brevitas_axe.plan import Plan
from brevitas_axe.proof.emulator import emulate
from brevitas_axe.recipe import Run
from brevitas_axe.run.logs import log_numbers
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.request import Validate
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.widths import validation


@dataclass(frozen=True)
class Validated:
    """Numbers of one function.

    Attributes:
        function: its name, as the user wrote it.
        unquantized: of the float model; None where there is none.
        unlimited: with the same bits on accumulators of any width.
        limited: on the accumulators that are asked for.
    """

    function: str
    unquantized: float | None
    unlimited: float | None
    limited: float | None


class Emulated(nn.Module):
    """A QONNX file as a model that a function can call, on accumulators of P bits.

    Args:
        file: of one input.
        settings: of `brevitas_axe.emulate`; without any, accumulators have no limit.
    """

    def __init__(self, file: str | Path, **settings: Any) -> None:
        super().__init__()
        self._file, self._settings = file, settings

    def forward(self, x: Tensor) -> Tensor:
        result = emulate(self._file, x.detach().cpu().numpy(), **self._settings)
        return torch.from_numpy(result.output).to(x.device)


def number(validate: Validate, model: nn.Module) -> float:
    """How good a model is, evaluated as it is used.

    Raises:
        InvalidOption: the function does not return a number.
    """
    with torch.no_grad():
        return validation(validate, model.eval())


def in_float(validate: Validate, model: nn.Module) -> float:
    """How good a model is without its quantizers."""
    return number(validate, float_twin(model) if has_quantizers(model) else model)


def validated(
    name: str,
    validate: Validate,
    model: nn.Module,
    batches: Iterable[Any],
    result: QuantizeResult,
    run: Run = Run(),
) -> Validated:
    """Numbers of a model before it was solved, solved without limits, and as it was solved.

    Args:
        name: of the function.
        validate: function(model) → how good it is.
        model: that was solved.
        batches: of calibration.
        result: of the solve; one more is done without limits of accumulators, in the same way.
        run: as in `quantize`; progress is kept in a folder of its own.
    """
    log, run = run.log, replace(run, log=None)
    if run.state is not None:
        run = replace(run, state=Path(run.state) / "unlimited")
    plan = without_limits(result.plan)
    free = result
    if plan != result.plan:
        free = quantize(model, batches, plan, result.recipe, exclude=result.exclude, run=run)
    found = Validated(
        name,
        in_float(validate, model),
        number(validate, free.model),
        number(validate, result.model),
    )
    log_numbers(log, "validation", asdict(found), 0)
    return found


def without_limits(plan: Plan) -> Plan:
    """The same bits on accumulators of any width."""
    return Plan({name: replace(p, accumulator=None) for name, p in plan.layers.items()})
