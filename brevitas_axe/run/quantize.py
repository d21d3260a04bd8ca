"""One call for every model: quantized so that no accumulator can overflow, and proven."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.experts import experts_to_linears
from brevitas_axe.model.plain import check_open, check_plainly_written
from brevitas_axe.model.prepare import as_batches, has_quantizers
from brevitas_axe.model.running import check_runs, evaluating
from brevitas_axe.model.stack import blocks_in_turn, find_blocks
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.quantize_blocks import best_block_widths, solve_blocks
from brevitas_axe.run.request import Keywords, Request, requested
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.whole import quantize_whole

if TYPE_CHECKING:
    from typing_extensions import Unpack


def quantize(
    model: nn.Module,
    calibration: Iterable[Any],
    plan: Plan | LayerPrecision | None = None,
    recipe: Recipe | str | Path | None = None,
    *,
    exclude: Iterable[str] = (),
    stack: str | None = None,
    run: Run = Run(),
    **keywords: Unpack[Keywords],
) -> QuantizeResult:
    """Quantizes a model so that no accumulator can overflow, and proves it.

    A float model with a stack of blocks, as transformers have, is solved block after block and
    keeps embeddings, norms and, unless the recipe says otherwise, attention products and its head
    in float; the result is then a `BlocksResult`. Every other model is solved as a whole.

    Args:
        model: a float model, or a Brevitas model with calibrated activations (whose own bit widths
            are kept where no plan names them). Not modified; `quantize_blocks` changes a model too
            large for a copy.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        plan: widths by layer name, or one precision for all layers. With a plan, layers that it
            does not name are not solved.
        recipe: how it is done; a `Recipe`, a preset ("fpga", "transformer", "fast") or a YAML file.
        exclude: names of layers to leave without a budget, and out of the certificate.
        stack: module name of the stack of blocks, where the model has several.
        run: where progress is kept, and how many tasks run at a time; changes no integer.
        keywords: the short way to all of these, such as `accumulator_bit_width=16`; see
            `brevitas_axe.run.request.Keywords`. They change the recipe and the run given.

    Returns:
        Model, plan, recipe, certificate and log.

    Raises:
        InvalidOption, InvalidPlan, UnsupportedLayer: a request that cannot be met, by its name.
        AccumulatorTooNarrow, NonFiniteValues, InvalidState, NotEnoughMemory, NotEnoughDisk: each
            names the layer or the way out.
    """
    request = requested(plan, recipe, exclude, run, keywords)
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"quantize takes a torch.nn.Module, not a {type(model).__name__}.")
    check_open(model)
    batches = as_batches(calibration, model)
    if not has_quantizers(model):
        check_plainly_written(model)
    if has_quantizers(model):
        if stack is not None:
            raise InvalidOption(
                "a model that has quantizers is solved as a whole; leave out stack."
            )
        return quantize_whole(model, batches, request)
    with evaluating(model):
        check_runs(model, batches[0])
        in_turn = stack is not None or blocks_in_turn(model, batches[0])
    if not in_turn:
        return quantize_whole(model, batches, request)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise InvalidOption(
            "parts of the model are not in memory, so it cannot be copied; use quantize_blocks, "
            "which changes the model itself."
        )
    if request.recipe.outside == "float":
        request = _inside(request, model, stack)
    model = copy.deepcopy(model)
    experts_to_linears(model, request.exclude)
    if request.recipe.widths is not None:
        return best_block_widths(model, batches, request, stack)
    return solve_blocks(model, batches, request, stack)


def _inside(request: Request, model: nn.Module, stack: str | None) -> Request:
    """The request without excluded layers outside of the blocks, which stay in float anyway."""
    outside = {
        name
        for name, _ in model.named_modules()
        if not any(f"{name}.".startswith(f"{block}.") for block in find_blocks(model, stack))
    }
    return replace(request, exclude=tuple(n for n in request.exclude if n not in outside))
