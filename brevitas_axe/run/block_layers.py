"""How the layers of a float model, or of one block, are rewritten and become Brevitas layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import layerwise_quantize
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.inputs.protocol import input_quantizer
from brevitas_axe.methods.ranges import fit_format_ranges, fit_ranges_to
from brevitas_axe.methods.transforms.linears import linears
from brevitas_axe.model.apply.minifloats import give_inputs
from brevitas_axe.model.apply.weight_bits import set_weight_bits
from brevitas_axe.model.branches import BranchedLinear
from brevitas_axe.model.devices import building_for
from brevitas_axe.model.percentiles import quick_percentiles
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
    Int8WeightPerTileFloatAXE,
)
from brevitas_axe.model.stack import Alone, Call, is_conv1d, left_in_float
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe
from brevitas_axe.run.block_attention import BlockAttention
from brevitas_axe.run.request import Request
from brevitas_axe.run.solve import axe_mode

# (scales of the recipe, powers of two) → weight quantizer.
_WEIGHTS = {
    ("channel", False): Int8WeightPerChannelFloatAXE,
    ("channel", True): Int8WeightPerChannelFixedPointAXE,
    ("tensor", False): Int8WeightPerTensorFloatAXE,
    ("tensor", True): Int8WeightPerTensorFixedPointAXE,
    ("tile", False): Int8WeightPerTileFloatAXE,
}
# Fewer bits are what the groups of a split may have.
_LEAST_WEIGHT_BITS = 2


def weight_quantizer(recipe: Recipe) -> Any:
    """The Brevitas weight quantizer of a recipe."""
    return _WEIGHTS[recipe.weights, recipe.power_of_two]


def check_weight_bits(widths: Iterable[LayerPrecision]) -> None:
    """Raises InvalidOption for whole layers of one bit."""
    if any((p.weight_bits or _LEAST_WEIGHT_BITS) < _LEAST_WEIGHT_BITS for p in widths):
        raise InvalidOption(
            "weights need 2 bits or more; of one bit are only groups of them, which the split slim "
            "makes at a mean of 2."
        )


def transformed(
    recipe: Recipe,
    module: nn.Module,
    calls: Sequence[Batch],
    widths: LayerPrecision,
    exclude: tuple[str, ...] = (),
) -> tuple[str, ...]:
    """Runs the recipe's transforms over a float module, in place.

    Args:
        recipe: names them.
        module: a model, or one block.
        calls: arguments of its forward, batch by batch.
        widths: what the layers are to be quantized to.
        exclude: names of layers to leave alone.

    Returns:
        What must be true of the data for the module's function to be the same.
    """
    assumptions: list[str] = []
    for found in (linears, *recipe.methods("transforms")):
        excluding = replace(found, exclude=(*found.exclude, *exclude))
        assumptions += excluding(module, calls, widths)
    return tuple(assumptions)


def fit_to_widths(
    recipe: Recipe, module: nn.Module, batches: Sequence[Batch], widths: Iterable[LayerPrecision]
) -> None:
    """Fits the ranges of a calibrated module to the bits of its layers, by the recipe's method."""
    widths = tuple(widths)
    bits = {p.input_bits for p in widths if p.input_bits is not None}
    weight_bits = {p.weight_bits for p in widths if p.weight_bits is not None}
    for fitter in recipe.methods("ranges") if bits else ():
        fit_ranges_to(module, batches, bits, fitter, weight_bits)


def fit_formats(recipe: Recipe, module: nn.Module, batches: Sequence[Batch]) -> None:
    """Fits the ranges of inputs in floating-point formats, by the recipe's method."""
    for fitter in recipe.methods("ranges"):
        fit_format_ranges(module, batches, fitter)


@dataclass(frozen=True)
class BlockLayers:
    """How the layers of a block are quantized.

    Attributes:
        recipe: resolved.
        plan: widths of the layers to solve, by their names in the whole model. All have weight and
            input bits.
        scale_tile: the tile of layers that have no other one; where it is given, a layer without a
            tile has no more inputs than one, and one scale per row.
        fit: whether input ranges are fitted by the recipe's method.
        products: what is planned for attention products, by their names in the whole model.
    """

    recipe: Recipe
    plan: Plan
    scale_tile: int | None = None
    fit: bool = False
    products: Plan = field(default_factory=Plan)

    def apply(
        self, alone: Alone, calls: Sequence[tuple[Call, Call]]
    ) -> tuple[list[Tensor], Plan, tuple[str, ...]]:
        """Quantizes and calibrates one block, in place, without gradients.

        Args:
            alone: the float block.
            calls: inputs of the block, quantized and float, batch by batch; it is calibrated on the
                float ones.

        Returns:
            The float block's outputs, batch by batch; the widths of its layers by their names after
            the transforms; and what must be true of the data.
        """
        floats = tuple(name for name in left_in_float(alone) if not self._widths(name))
        batches = [(pair, {}) for pair in calls]
        assumptions = transformed(self.recipe, alone, batches, self._narrowest(alone), floats)
        linear = [name for name, module in alone.named_modules() if type(module) is nn.Linear]
        plan = Plan({name: p for name in linear if (p := self._widths(name))})
        for options, names in self._groups(alone, plan):
            others = [name for name in linear if name not in names]
            with building_for(alone):
                layerwise_quantize(alone, {nn.Linear: (qnn.QuantLinear, options)}, others)
        for name, widths in plan.layers.items():
            layer: Any = alone.get_submodule(name)
            set_weight_bits(layer.weight_quant, widths.weight_bits or _LEAST_WEIGHT_BITS)
        attention = None
        if self.recipe.attention == "quantized":
            attention = BlockAttention(alone, calls, plan, self.products)
        with calibration_mode(alone), quick_percentiles(alone):
            outputs = [alone(*pair) for pair in calls]
        widths = [*plan.layers.values(), *(attention.widths() if attention else ())]
        if self.fit:
            fit_to_widths(self.recipe, alone, batches, widths)
        if attention is not None:
            attention.choose(outputs)
        give_input_formats(alone, plan)
        if self.fit:
            fit_formats(self.recipe, alone, batches)
        return outputs, plan, assumptions

    def _widths(self, name: str) -> LayerPrecision | None:
        """Planned widths of a layer, by its name before or after transforms wrapped it."""
        for planned, widths in self.plan.layers.items():
            if planned.startswith(f"{name}."):
                return widths
        while name:
            if name in self.plan.layers:
                return self.plan.layers[name]
            name = name.rpartition(".")[0]
        return None

    def _narrowest(self, alone: Alone) -> LayerPrecision:
        """The fewest bits and the least tile of the block's layers, for its transforms."""
        mine = self.plan.within(alone.name).layers.values()
        return LayerPrecision(
            min((p.weight_bits for p in mine if p.weight_bits), default=None),
            min((p.input_bits for p in mine if p.input_bits), default=None),
            min((p.accumulator for p in mine if p.accumulator), default=None),
            min((p.tile for p in mine if p.tile), default=None),
        )

    def _groups(self, alone: Alone, plan: Plan) -> list[tuple[dict[str, Any], list[str]]]:
        """Options of Brevitas layers, each with the names of the layers that share them."""
        groups: dict[tuple, list[str]] = {}
        for name, widths in plan.layers.items():
            tile = None
            if self.recipe.weights == "tile":
                tile = widths.tile
                layer: Any = alone.get_submodule(name)
                branch = isinstance(_parent(alone, name), BranchedLinear)
                if tile is None and (self.scale_tile is not None or branch):
                    tile = layer.in_features  # it has no more inputs than a tile
                if tile is None:
                    raise InvalidOption(
                        f"layer '{name}' is to have a weight scale per tile, but no tile is "
                        "planned for it; plan one, or set the recipe's weights to channel."
                    )
            groups.setdefault((widths.weight_bits, widths.input_bits, tile), []).append(name)
        return [(self._options(*widths), names) for widths, names in groups.items()]

    def _options(self, weight: int, input: int, tile: int | None) -> dict[str, Any]:
        [inputs] = self.recipe.methods("inputs")
        return {
            "weight_quant": weight_quantizer(self.recipe),
            "weight_bit_width": max(weight, _LEAST_WEIGHT_BITS),
            "weight_accumulator_bit_width": None,
            "input_quant": input_quantizer(inputs, self.recipe.symmetric),
            "input_bit_width": input,
            **({} if tile is None else {"weight_group_size": tile}),
        }


def give_input_formats(module: nn.Module, plan: Plan) -> None:
    """Gives layers whose inputs a plan has in floating-point formats such quantizers, in place.

    Args:
        module: contains the layers, whose inputs are quantized to integers and calibrated.
        plan: of the layers.
    """
    for name, widths in plan.layers.items():
        if isinstance(widths.input, str):
            layer: Any = module.get_submodule(name)
            give_inputs(module, [layer.input_quant], widths.input)


def _parent(module: nn.Module, name: str) -> nn.Module:
    return module.get_submodule(name.rpartition(".")[0])


def solving(module: nn.Module, plan: Plan, request: Request, place: str) -> axe_mode:
    """The mode that solves layers which have their weight and input bits already.

    It gives weights the floating-point formats of the plan.

    Args:
        module: contains the layers.
        plan: their widths.
        request: has the solver.
        place: folder of these layers in the state of the run.
    """
    recipe, run = request.recipe, request.run
    solved = {
        name: replace(p, weight=p.weight if isinstance(p.weight, str) else None, input=None)
        for name, p in plan.layers.items()
    }
    return axe_mode(
        module,
        plan=Plan(solved),
        solver=recipe.solver,
        quality=recipe.quality,
        act_order=recipe.act_order,
        workers=run.workers,
        state=None if run.state is None else Path(run.state) / place,
    )


def columns_of(layers: Mapping[str, nn.Module]) -> dict[str, int]:
    """Inputs of one dot product of each layer, linear or a convolution."""
    found: dict[str, int] = {}
    for name, layer in layers.items():
        kind: Any = layer
        found[name] = kind.weight.shape[0] if is_conv1d(layer) else kind.weight[0].numel()
    return found
