"""The layers in front of and behind the blocks of a transformer, where they become integers, too.

A patch embedding is a convolution and a classifier a linear layer, whose dot products a file for
hardware has beside those of the blocks. They are solved when the blocks are, in the whole model,
with static inputs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from brevitas.graph.quantize import LAYERWISE_COMPUTE_LAYER_MAP, layerwise_quantize
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.inputs.protocol import input_quantizer
from brevitas_axe.model.devices import building_for
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.on_graph import with_weights
from brevitas_axe.model.prepare import Batch, calibrate
from brevitas_axe.model.stack import left_in_float
from brevitas_axe.plan import Plan
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.block_layers import give_input_formats, solving, weight_quantizer
from brevitas_axe.run.checks import check_widths
from brevitas_axe.run.logs import solved_layers
from brevitas_axe.run.request import Request

_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layers_outside(
    model: nn.Module, blocks: Mapping[str, nn.Module], recipe: Recipe
) -> tuple[str, ...]:
    """Names of the layers outside the blocks that the recipe wants as integers.

    Raises:
        InvalidOption: the recipe has weight scales per tile, which convolutions have not.
    """
    if recipe.outside == "float":
        return ()
    if recipe.weights == "tile":
        raise InvalidOption(
            "scales per tile are for the linear layers of the blocks; leave the layers outside in "
            "float, or set the recipe's weights to channel or tensor."
        )
    readers = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    names = [name for name in left_in_float(model) if not is_inside(name, tuple(blocks))]
    layers = {name: model.get_submodule(name) for name in names}
    return tuple(
        name
        for name, layer in layers.items()
        if type(layer) in _KINDS and readers[id(layer.weight)] == 1
    )


def solve_outside(
    model: nn.Module,
    batches: Sequence[Batch],
    request: Request,
    plan: Plan,
    numbers: Iterator[int],
) -> Iterator[dict[str, Any]]:
    """Quantizes and solves layers outside the blocks, in place; gives the log entry of each.

    Args:
        model: whose blocks are solved.
        batches: of calibration.
        request: what the caller asked for.
        plan: widths of these layers.
        numbers: of the layers, across the whole run.
    """
    _quantize(model, request.recipe, plan)
    calibrate(model, batches, parts=[model.get_submodule(name) for name in plan.layers])
    give_input_formats(model, plan)
    with solving(model, plan, request, "outside") as axe:
        for args, kwargs in batches:
            axe.model(*args, **kwargs)
        check_widths(axe)
        for entry in solved_layers(axe, request.run.log, numbers):
            yield dict(entry)


def _quantize(model: nn.Module, recipe: Recipe, plan: Plan) -> None:
    """Makes Brevitas layers of those that a plan names, in place."""
    [static] = Recipe().methods("inputs")
    for name, widths in plan.layers.items():
        weight = {"weight_quant": weight_quantizer(recipe), "weight_bit_width": widths.weight_bits}
        inputs = {
            "input_quant": input_quantizer(static, recipe.symmetric),
            "input_bit_width": widths.input_bits,
        }
        layer_map = with_weights(LAYERWISE_COMPUTE_LAYER_MAP, weight, inputs)
        kinds = {kind: layer_map[kind] for kind in _KINDS}
        others = [other for other in left_in_float(model) if other != name]
        with building_for(model):
            layerwise_quantize(model, kinds, others)
