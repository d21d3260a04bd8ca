"""The recipe's split: layers of a float model become branches, and so do their planned widths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.splits.layers import split_layers_by
from brevitas_axe.methods.splits.protocol import Split
from brevitas_axe.model.branches import branch_names, branch_plan, branched_layers
from brevitas_axe.model.layers import find_unquantized
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe
from brevitas_axe.registry import method
from brevitas_axe.rules import applies
from brevitas_axe.run.request import Request


def split_model(
    model: nn.Module, batches: Sequence[Batch], request: Request, whole: tuple[str, ...] = ()
) -> tuple[nn.Module, Request]:
    """A copy of the model with branches, and the request with their widths.

    Both are returned unchanged where the recipe has no split.

    Layers of which a plan names neither themselves nor branches stay whole: they stay in float.

    Args:
        model: a float model; not modified.
        batches: calibration batches.
        request: names the split, or one for every pattern of names.
        whole: further layers, besides the excluded ones, that are not split.

    Raises:
        InvalidOption: a pattern that no layer has, or no layer that is called.
        InvalidPlan: a split with more bits than the plan has for its layer.
    """
    recipe, plan = request.recipe, request.plan
    if recipe.split is None:
        return model, request
    exclude = (*request.exclude, *whole)
    layers = {n: model.get_submodule(n) for n in find_unquantized(model, exclude)}
    if plan is None:
        widths = _ruled(layers, request)
    else:
        widths = {name: _planned(plan, name) for name in layers}
    planned = Plan({name: mine for name, mine in widths.items() if mine is not None})
    splits = _splits(recipe, layers, planned)
    if not splits:
        return model, request
    model = split_layers_by(model, batches, splits, exclude, planned)
    if plan is None:
        return model, replace(request, of_branches=_of_branches(model))
    _check_means(model, plan, recipe)
    return model, replace(request, plan=branch_plan(model, plan))


def _planned(plan: Plan, name: str) -> LayerPrecision | None:
    """Widths of a layer by a plan, open ones where it names the layer's branches; else None."""
    if any(branch.startswith(f"{name}.") for branch in plan.layers):
        return LayerPrecision()
    return plan.layers.get(name)


def _splits(recipe: Recipe, layers: Mapping[str, nn.Module], planned: Plan) -> dict[str, Split]:
    """Layer → its split; layers that have no widths, or no split, are left out.

    Raises:
        InvalidOption: a pattern that no layer has.
    """
    linear = {name: layer for name, layer in layers.items() if type(layer) is nn.Linear}
    for pattern in recipe.split if isinstance(recipe.split, Mapping) else ():
        if not any(applies(pattern, name, layer) for name, layer in linear.items()):
            raise InvalidOption(
                f"the split '{pattern}' applies to no linear layer; there are: {', '.join(linear)}."
            )
    named = {n: recipe.split_of(n, layer) for n, layer in linear.items() if n in planned.layers}
    return {name: method("splits", spec) for name, spec in named.items() if spec is not None}


def _check_means(model: nn.Module, plan: Plan, recipe: Recipe) -> None:
    """Refuses branches with more bits than a plan has for their layer, before anything is solved.

    Raises:
        InvalidPlan: the plan was made for fewer bits, by an allocation say.
    """
    for name, whole in branched_layers(model).items():
        if name not in plan.layers:  # its branches are planned
            continue
        allowed, stored, weights = plan[name].weight_bits, 0, whole.inputs * whole.outputs
        for branch in whole.branches:
            count = whole.get_submodule(branch).get_parameter("weight").numel()
            stored += count * (whole.precisions[branch].weight_bits or 0)
        if allowed is not None and stored > allowed * weights:
            raise InvalidPlan(
                f"layer '{name}' is planned with {allowed} bits for its weights, but its split "
                f"takes {stored / weights:.3g} on average; plan as many, or leave the layer out "
                "of the recipe's split."
            )


def _ruled(layers: Mapping[str, nn.Module], request: Request) -> dict[str, LayerPrecision | None]:
    """Widths of every layer by the request and the rules, None where these exclude it."""
    return {n: request.recipe.ruled(n, layer, request.widths) for n, layer in layers.items()}


def _of_branches(model: nn.Module) -> dict[str, LayerPrecision]:
    """Branch → widths that its split gives it."""
    return {
        name: precision
        for layer, split in branched_layers(model).items()
        for name, precision in zip(
            branch_names(layer, split), split.precisions.values(), strict=True
        )
    }
