"""What of a model is solved in blocks, at which widths, and what stays in float beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.model.attention_calls import is_product, named_products
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.stack import left_in_float
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.run.block_layers import columns_of
from brevitas_axe.run.request import Request, layer_widths


def block_plan(
    model: nn.Module,
    blocks: dict[str, nn.Module],
    request: Request,
    kept: tuple[str, ...],
    around: tuple[str, ...] = (),
) -> Plan:
    """Widths of all layers that are to be solved, of the blocks and around them.

    What a plan says of attention products is checked and left out.

    Args:
        model: contains the blocks.
        blocks: by name.
        request: has the plan, or the widths.
        kept: names of layers that stay in float unless a plan names them.
        around: names of layers outside the blocks that are solved, too.

    Raises:
        InvalidOption, InvalidPlan: an excluded or planned layer is not in a block, or none is left.
    """
    _check_products(named_products(request.plan), blocks, request)
    names = [n for n in left_in_float(model) if n in around or is_inside(n, tuple(blocks))]
    left = [name for name in names if not is_inside(name, request.exclude)]
    there = (*names, *kept)
    unknown = [e for e in request.exclude if not any(is_inside(name, (e,)) for name in there)]
    if unknown:
        raise InvalidOption(
            f"the excluded layer '{sorted(unknown)[0]}' is not in a block; their layers are: "
            f"{', '.join(names)}."
        )
    layers = {name: model.get_submodule(name) for name in left}
    if request.plan is None:
        layers = {name: layer for name, layer in layers.items() if name not in kept}
        columns = columns_of(layers)
        plan = layer_widths(layers, columns, request.recipe, request.widths, request.of_branches)
    else:
        plan = _filled(request.plan, layers, request)
    if not plan.layers:
        raise InvalidOption("every layer of the blocks is excluded; exclude fewer of them.")
    return plan


def _filled(plan: Plan, layers: dict[str, nn.Module], request: Request) -> Plan:
    """A plan with weight and input bits for every layer that it names."""
    excluded = request.recipe.excluded(layers)
    names = [name for name in layers if name not in excluded]
    if request.recipe.transforms:
        # Layers that a transform wrapped are planned by the names that they had afterwards.
        names += [planned for planned in plan.layers if is_inside(planned, tuple(names))]
    planned = {name: p for name, p in plan.layers.items() if not is_product(name)}
    Plan(planned).check_names(names)
    usual = request.widths
    return Plan(
        {
            name: replace(p, weight=p.weight or usual.weight, input=p.input or usual.input)
            for name, p in planned.items()
        }
    )


def _check_products(named: Plan, blocks: Mapping[str, nn.Module], request: Request) -> None:
    """Raises InvalidPlan where no product of a name can be in a block, or all stay in float."""
    for name in named.layers:
        if request.recipe.attention != "quantized":
            raise InvalidPlan(
                f"the plan names the attention product '{name}', which stays in float; set the "
                "recipe's attention to quantized, or leave it out of the plan."
            )
        if not is_inside(name, tuple(blocks)):
            raise InvalidPlan(
                f"the plan names the attention product '{name}', which is in no block; they are: "
                f"{', '.join(blocks)}."
            )


def products_outside(
    model: nn.Module, blocks: Mapping[str, nn.Module], batch: Batch
) -> tuple[str, ...]:
    """Names of what multiplies outside layers and outside blocks, such as a pooling by a mask.

    It stays in float like the layers there, and the certificate of the whole model names it.

    Args:
        model: in float.
        blocks: by name; what lies in them is found when they are solved.
        batch: runs through the model once.
    """
    args, kwargs = batch
    entries = certify(model, args=args, kwargs=kwargs).entries
    return tuple(
        e.name for e in entries if e.layer is None and not is_inside(e.name, tuple(blocks))
    )
