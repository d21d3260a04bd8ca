"""The whole run: prepare, calibrate, solve under the accumulator budget, prove."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from brevitas_axe.accumulator import one_sided_budgets, required_bit_width
from brevitas_axe.errors import AccumulatorTooNarrow, AxeError, InvalidOption, NotEnoughMemory
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.methods.solvers.problem import Quality
from brevitas_axe.model.apply.activations import set_input_bits
from brevitas_axe.model.prepare import Batch, as_batches, has_quantizers, to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, certify
from brevitas_axe.run.solve import axe_mode


@dataclass(frozen=True, repr=False)
class QuantizeResult:
    """What `quantize` returns.

    Attributes:
        model: the solved Brevitas model, in evaluation mode.
        plan: the widths every layer ended with.
        certificate: proof from the live model.
        layers: one log entry per layer, in order of solving.
    """

    model: nn.Module
    plan: Plan
    certificate: Certificate
    layers: list[dict]

    def __repr__(self) -> str:
        head = f"{type(self).__name__} of {type(self.model).__name__}"
        return f"{head}\n  {self.plan!r}\n  {self.certificate!r}"

    def _repr_html_(self) -> str:
        return f"{self.plan._repr_html_()}\n{self.certificate._repr_html_()}"


def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    *,
    accumulator_bit_width: int | None = None,
    weight_bit_width: int = 4,
    input_bit_width: int = 8,
    tile_size: int | None = None,
    plan: Plan | None = None,
    algorithm: str = "qronos",
    quality: Quality = "best",
    act_order: bool | None = None,
    exclude: tuple[str, ...] = (),
    state: str | Path | None = None,
    progress: bool = True,
) -> QuantizeResult:
    """Quantizes a model so that no accumulator can overflow, and proves it.

    Args:
        model: a plain PyTorch model, or a Brevitas model with calibrated activations (whose own
            bit widths are kept). Not modified.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        accumulator_bit_width: P for every layer; None leaves them unconstrained.
        weight_bit_width: bits of the weights of a plain model.
        input_bit_width: bits of the activations of a plain model; its own input has 8.
        tile_size: inputs per inner accumulator, None for whole dot products.
        plan: per-layer widths instead of one P and tile. A plain model gets its input bits too,
            with ranges that fit them; for a Brevitas model see `set_input_bits` of
            `brevitas_axe.model.apply` and `fit_ranges` of `brevitas_axe.methods.ranges`.
        algorithm: name of a solver: "gpfq", "gptq", "qronos", or one of another package.
        quality: "fast" (as published) or "best".
        act_order: column order, see `brevitas_axe.run.solve.axe_mode`.
        exclude: names of layers to leave without a budget, and out of the certificate.
        state: folder for progress; a killed run continues from it to the same integers.
        progress: show progress bars.

    Returns:
        Model, plan, certificate and log.
    """
    if plan is not None and (accumulator_bit_width, tile_size) != (None, None):
        raise InvalidOption("give either a plan or one accumulator width and tile, not both.")
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"quantize takes a torch.nn.Module, not a {type(model).__name__}.")
    batches = as_batches(calibration)
    quantized = copy.deepcopy(model).eval()
    check_runs(quantized, batches[0])
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if not has_quantizers(quantized):
        quantized = to_brevitas(
            quantized,
            batches,
            weight_bit_width=weight_bit_width,
            input_bit_width=input_bit_width,
            progress=progress,
        )
        if plan is not None:
            _follow_inputs(quantized, plan, batches, exclude)
    with (
        torch.no_grad(),
        axe_mode(
            quantized,
            accumulator_bit_width=accumulator_bit_width,
            plan=plan,
            accumulator_tile_size=tile_size,
            solver=algorithm,
            act_order=act_order,
            quality=quality,
            exclude=exclude,
            state=state,
            progress=progress,
        ) as axe,
    ):
        for args, kwargs in batches:
            axe.model(*args, **kwargs)
        check_widths(axe)
        while axe.update():
            pass
    final = _final_plan(axe)
    args, kwargs = batches[0]
    certificate = certify(quantized, plan=final, exclude=exclude, args=args, kwargs=kwargs)
    return QuantizeResult(quantized, final, certificate, axe.log)


def _follow_inputs(
    model: nn.Module, plan: Plan, batches: Sequence[Batch], exclude: tuple[str, ...]
) -> None:
    """Gives activations their planned bits, and ranges that fit them."""
    bits = {p.input for p in plan.layers.values() if p.input is not None}
    if bits:
        fit_ranges(model, [args[0] if args else kwargs for args, kwargs in batches], bits)
    set_input_bits(model, plan, *batches[0], exclude)


def check_runs(model: nn.Module, batch: Batch) -> None:
    """One forward, so that what is wrong with model or data is told apart from what is ours."""
    args, kwargs = batch
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except AxeError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise NotEnoughMemory(
                "memory ran out in one forward on calibration batch 0; give smaller batches."
            ) from error
        reason = next(iter(str(error).splitlines()), "")
        raise InvalidOption(
            f"the model fails on calibration batch 0 ({type(error).__name__}: {reason}); give "
            "batches as its forward takes them."
        ) from error


def ran_out_of_memory(error: Exception) -> bool:
    """Whether this is what Python, torch or we say where memory ends; torch's CPU has no type."""
    kinds = MemoryError | torch.OutOfMemoryError | NotEnoughMemory
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def check_widths(axe: axe_mode) -> None:
    """Refuses, before any work, a width at which all weights of a layer would have to be zero."""
    for name, precision in axe.plan.layers.items():
        bits, reach = precision.accumulator, axe.layers[name].weight_quant.input_range
        if bits and reach and not any(one_sided_budgets(bits, reach.low, reach.high)):
            raise AccumulatorTooNarrow(
                f"a {bits}-bit accumulator does not hold one input of layer '{name}', which lies "
                f"in [{reach.low}, {reach.high}], so all its weights would be zero; give it "
                f"{required_bit_width(reach.low, reach.high)} bits or more, or its input fewer."
            )


def _final_plan(axe: axe_mode) -> Plan:
    """The plan with the bits that the quantizers really have."""
    final: dict[str, LayerPrecision] = {}
    for name, precision in axe.plan.layers.items():
        proxy = axe.layers[name].weight_quant
        bits = int(proxy.tensor_quant.msb_clamp_bit_width_impl())
        reach = proxy.input_range
        inputs = None if reach is None else reach.bit_width
        final[name] = replace(precision, weight=bits, input=inputs)
    return Plan(final)
