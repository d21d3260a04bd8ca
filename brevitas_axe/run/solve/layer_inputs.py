"""Turns suspended forwards into the `LayerProblem` that a solver gets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import MissingInputQuantizer, UnsupportedLayer
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.model.apply.minifloats import weight_numbers
from brevitas_axe.model.apply.weight_bits import is_binary
from brevitas_axe.model.apply.weights import current_scale, is_power_of_two, is_shared_scale
from brevitas_axe.model.layers import Layer, unroll_weight
from brevitas_axe.model.moments import Moments, Statistics
from brevitas_axe.model.running import dequantized
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.run.solve.branches import Branches
from brevitas_axe.run.solve.walk import SuspendedForward, abandon_all

# Layer → the range of its input in each call, None where that had none.
Calls = Mapping[str, Sequence[InputRange | None]]
Pair = tuple[SuspendedForward, SuspendedForward | None]


def check_quantized(calls: Calls, plan: Plan) -> None:
    """Refuses layers whose accumulator cannot be bounded.

    Args:
        calls: as `observe_inputs` gives them.
        plan: of the layers.

    Raises:
        MissingInputQuantizer: names the first of them.
    """
    for name, ranges in calls.items():
        if plan[name].accumulator is not None and None in ranges:
            raise MissingInputQuantizer(
                f"the input of layer '{name}' is not quantized to integers, so its "
                "accumulator cannot be bounded; give it an input_quant, feed it a "
                "QuantTensor (return_quant_tensor=True of the activation before it), or "
                f"exclude it by name, exclude=('{name}',)."
            )


def set_input_ranges(layers: Mapping[str, Layer], calls: Calls) -> None:
    """Tells weight quantizers the range of all calls; none where one of them had none."""
    for name, ranges in calls.items():
        known = [input_range for input_range in ranges if input_range is not None]
        input_range = reduce(InputRange.union, known) if len(known) == len(ranges) else None
        layers[name].weight_quant.set_input_range(input_range)


def collect(
    name: str, layer: Layer | Branches, forwards: Sequence[Pair], cross: bool, at: str
) -> Moments:
    """Moments of a layer's inputs, from forwards that are suspended in front of it.

    Args:
        name: of the layer.
        layer: the layer itself, or the branches that are solved together.
        forwards: of the quantized and the float model, for every batch.
        cross: collect the products with the float inputs too.
        at: name of the layer in front of which the forwards are suspended: this one, one that reads
            the same tensor, or the first branch.
    """
    moments = _moments(name, layer, cross)
    for quant, real in forwards:
        if quant.layer != at:
            continue
        real = real if cross else None
        if real is not None and real.layer != at:
            raise UnsupportedLayer(
                f"layer '{at}' runs in the quantized model but not in the float one "
                "for the same batch; exclude it, or use quality='fast' and a solver that does not "
                "look at the float model's inputs."
            )
        _add(moments, layer, quant, real)
    return moments


def collect_all(
    name: str,
    layer: Layer | Branches,
    models: Sequence[nn.Module],
    batches: Sequence[tuple[tuple, dict]],
    cross: bool,
    at: str,
) -> Moments:
    """Moments of a layer that one forward calls several times: over all its calls.

    Args:
        name, layer, cross: see `collect`.
        models: the quantized one and, with cross, the float one.
        batches: arguments of their forwards.
        at: name of the layer, or of the first branch.
    """
    moments = _moments(name, layer, cross)
    for args, kwargs in batches:
        pair = [SuspendedForward(model, args, kwargs) for model in models]
        try:
            while True:
                for forward in pair:
                    forward.advance(at.__eq__)
                if any(forward.finished for forward in pair):
                    break
                _add(moments, layer, *pair)
        finally:
            abandon_all(pair)
    return moments


def _moments(name: str, layer: Layer | Branches, cross: bool) -> Moments:
    if isinstance(layer, Branches):
        first = next(iter(layer.layers.values()))
        return Moments(name, first, cross, sum(layer.columns))
    return Moments(name, layer, cross)


def _add(
    moments: Moments,
    layer: Layer | Branches,
    quant: SuspendedForward,
    real: SuspendedForward | None = None,
) -> None:
    if isinstance(layer, Branches):
        inputs = layer.inputs(quant.branched_input[layer.name])
        quantized = torch.cat([_quantized(branch, x) for branch, x in inputs], -1)
        floats = None
        if real is not None:
            pairs = layer.inputs(real.branched_input[layer.name])
            floats = torch.cat([x for _, x in pairs], -1)
    else:
        quantized = _quantized(layer, quant.layer_input)
        floats = None if real is None else dequantized(real.layer_input)
    moments.add(quantized, floats)


def _quantized(layer: Layer, layer_input: object) -> Tensor:
    """A layer's input after its input quantizer, as a plain tensor."""
    quantized = layer.input_quant(layer_input)
    if layer.weight_quant.accumulator_bit_width is not None:
        layer.weight_quant.observe(quantized)
    return dequantized(quantized)


def layer_problem(
    name: str,
    layer: Layer,
    precision: LayerPrecision,
    statistics: Statistics,
    scale: Tensor | None = None,
) -> LayerProblem:
    """The solver's problem: weights and grids of a layer, its budget and its inputs' moments.

    Args:
        name: of the layer, for messages.
        layer: the layer itself.
        precision: its widths.
        statistics: of its inputs.
        scale: start scale, [rows] or [rows, tiles], instead of the quantizer's own.
    """
    low, high, significant = weight_numbers(layer)
    binary = is_binary(layer)
    weight = unroll_weight(layer, layer.weight.detach()).float()
    tile = layer.weight_quant.scale_tile or precision.tile
    if scale is not None:
        start = scale.float().unsqueeze(0)
    else:
        start = _mean_magnitudes(layer, weight, tile) if binary else current_scale(layer).float()
    input_range: InputRange | None = layer.weight_quant.input_range
    return LayerProblem(
        weight=weight,
        scale=start,
        weight_low=low,
        weight_high=high,
        input_low=input_range.low if input_range else 0,
        input_high=input_range.high if input_range else 0,
        accumulator_bit_width=precision.accumulator,
        tile_size=tile,
        shared_scale=is_shared_scale(layer),
        power_of_two=is_power_of_two(layer),
        significant=significant,
        binary=binary,
        name=name,
        **statistics,
    )


def _mean_magnitudes(layer: Layer, weight: Tensor, tile: int | None) -> Tensor:
    """The start scale of weights of one bit, shaped like `current_scale`.

    Args:
        layer: tells which weights share a scale.
        weight: [groups, rows, K]; at their mean magnitude, -1 and 1 have the least error.
        tile: inputs that share a scale, where tiles have their own.
    """
    size = weight.abs()
    if layer.weight_quant.scale_tile is not None:
        parts = size.split(tile or size.shape[-1], -1)
        found = torch.stack([part.mean(-1) for part in parts], -1)
    else:
        found = size.mean(-1)
        found = found.mean().expand_as(found) if is_shared_scale(layer) else found
    found = found.clamp_min(torch.finfo(weight.dtype).tiny)
    return found.log2().round().exp2() if is_power_of_two(layer) else found
