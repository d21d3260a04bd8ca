"""The recipe's split: layers of a float model become branches, and so do their planned widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from brevitas_axe.methods.splits.layers import split_layers_by
from brevitas_axe.model.branches import branch_names, branch_plan, branched_layers
from brevitas_axe.model.layers import find_unquantized
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.run.request import Request


def split_model(
    model: nn.Module, batches: Sequence[Batch], request: Request, whole: tuple[str, ...] = ()
) -> tuple[nn.Module, Request]:
    """A copy of the model with branches, and the request with their widths.

    Both are returned unchanged where the recipe has no split.

    Args:
        model: a float model; not modified.
        batches: calibration batches.
        request: names the split.
        whole: further layers, besides the excluded ones, that are not split.
    """
    for split in request.recipe.methods("split"):
        exclude = (*request.exclude, *whole)
        if request.plan is not None:
            model = split_layers_by(model, batches, split, exclude, request.plan)
            request = replace(request, plan=branch_plan(model, request.plan))
            continue
        widths = _ruled(model, request)
        kept = tuple(name for name, mine in widths.items() if mine is None)
        plan = Plan({name: mine for name, mine in widths.items() if mine is not None})
        model = split_layers_by(model, batches, split, (*exclude, *kept), plan)
        request = replace(request, of_branches=_of_branches(model))
    return model, request


def _ruled(model: nn.Module, request: Request) -> dict[str, LayerPrecision | None]:
    """Widths of every layer by the request and the rules, None where these exclude it."""
    return {
        name: request.recipe.ruled(name, model.get_submodule(name), request.widths)
        for name in find_unquantized(model)
    }


def _of_branches(model: nn.Module) -> dict[str, LayerPrecision]:
    """Branch → widths that its split gives it."""
    return {
        name: precision
        for layer, split in branched_layers(model).items()
        for name, precision in zip(
            branch_names(layer, split), split.precisions.values(), strict=True
        )
    }
