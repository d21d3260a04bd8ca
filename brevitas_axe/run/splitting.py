"""The recipe's split: layers of a float model become branches, and so do their planned widths."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from brevitas_axe.methods.splits.layers import split_layers_by
from brevitas_axe.model.branches import branch_plan
from brevitas_axe.model.prepare import Batch
from brevitas_axe.run.request import Request


def split_model(
    model: nn.Module, batches: Sequence[Batch], request: Request, whole: tuple[str, ...] = ()
) -> tuple[nn.Module, Request]:
    """A copy of the model with branches, and the request with a plan for them.

    Both are returned unchanged where the recipe has no split.

    Args:
        model: a float model; not modified.
        batches: calibration batches.
        request: names the split.
        whole: further layers, besides the excluded ones, that are not split.
    """
    for split in request.recipe.methods("split"):
        exclude = (*request.exclude, *whole)
        model = split_layers_by(model, batches, split, exclude, request.plan)
        if request.plan is not None:
            request = replace(request, plan=branch_plan(model, request.plan))
    return model, request
