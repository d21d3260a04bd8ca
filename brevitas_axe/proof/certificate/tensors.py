"""Integers of Brevitas's quantized tensors, computed in float64 and checked, never trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer as Layer
from brevitas.quant_tensor import FloatQuantTensor, GroupwiseIntQuantTensor, IntQuantTensor
from torch import Tensor

from brevitas_axe.proof.certificate.floats import integers_of, numbers_of
from brevitas_axe.proof.certificate.proof import Found, Integers
from brevitas_axe.proof.graph.grid import (
    MAX_INPUT_BITS,
    MAX_WEIGHT_BITS,
    Unprovable,
    quantizer_range,
    single_integer,
    type_name,
)

_FIXED_POINT = "products of floating-point numbers are added up exactly, in fixed point"
# Elements that are looked at in float64 at a time.
_CHUNK = 2**17


@dataclass(frozen=True)
class InputFact:
    """The input of a dot product.

    Attributes:
        low: smallest integer, zero point subtracted, ≤ 0.
        high: largest integer, ≥ 0.
        type: qonnx DataType of the stored integers.
        scale: float64, scalar or one per channel [C]; NaN when it varies between outputs only.
        length: size of the last axis.
        assumptions: what is trusted without a check, one sentence each.
    """

    low: int
    high: int
    type: str
    scale: np.ndarray
    length: int
    assumptions: tuple[str, ...] = ()


def summed_range(value: IntQuantTensor, parts: Sequence[tuple]) -> tuple[int, int] | None:
    """Integers of a sum of quantizers, in units of its scale.

    None where the step of one is no power of two times the scale.

    Args:
        value: the sum.
        parts: scale, bit width, and whether it is signed, of every quantizer.
    """
    scale = _array(value.scale)
    if scale.size != 1:
        return None
    low = high = 0
    for step, bits, signed in parts:
        ratio = float(np.float32(step)) / float(scale.reshape(-1)[0])
        if ratio < 1 or np.frexp(ratio)[0] != 0.5:
            return None
        ends = quantizer_range(int(bits), bool(signed), narrow=False)
        low, high = low + int(ratio) * ends[0], high + int(ratio) * ends[1]
    return low, high


def read_input(
    value: object,
    channel_axis: int | None,
    exact: bool,
    any_point: bool = False,
    within: tuple[int, int] | None = None,
) -> InputFact:
    """Range and scale of an activation.

    Args:
        value: the input.
        channel_axis: axis along which a scale may differ by channel; None means that the last
            axis is summed over, and the scale must not vary there.
        exact: its bit width comes straight from a quantizer. A bit width that Brevitas derived
            (after an addition, say) gets one bit more, because Brevitas declares the sum of a
            signed and an unsigned tensor one bit too narrow.
        any_point: its zero point is computed at run time, and so may be any integer of its type.
        within: integers of the sum of quantizers that gave it, of which its bit width has more.

    Raises:
        Unprovable: not an integer tensor, or its values contradict what it declares.
    """
    if isinstance(value, FloatQuantTensor):
        return _read_floats(value, channel_axis, exact)
    if not isinstance(value, IntQuantTensor):
        raise Unprovable(
            "its input is not quantized to integers; give it an input_quant, or a quantized "
            "activation before it"
        )
    bits = single_integer(_array(value.bit_width), "the input bit width", 1, MAX_INPUT_BITS - 1)
    points = _array(value.zero_point)
    if points.size == 0 or not np.isfinite(points).all() or np.any(points != np.rint(points)):
        raise Unprovable("its input has a zero point that is not an integer")
    signed, notes = bool(value.signed), []
    if not exact:
        bits += 1
        notes.append("its input range is the one that Brevitas derives, one bit added")
    low, high = quantizer_range(bits, signed, narrow=False)
    if any_point or np.any(points != 0):
        notes.append("the input zero point is subtracted before the product")
    if any_point and (points.min() < low or points.max() > high):
        raise Unprovable("its input has a zero point outside its own data type")
    if any_point:
        low, high = low - high, high - low
    else:
        low, high = low - int(points.max()), high - int(points.min())
    if within is not None:
        low, high = max(low, within[0]), min(high, within[1])
    scale = _finite_scale(value.scale, "input")
    # The rounding error of a sum is relative to its largest term, even if the terms cancel.
    largest_term = 0 if exact else 2**bits
    integers = _checked_integers(value.value, scale, "input", bits + 1, largest_term)
    if integers.size and (int(integers.min()) < low or int(integers.max()) > high):
        raise Unprovable(
            f"its input holds integers from {integers.min()} to {integers.max()}, outside its "
            f"declared {type_name(bits, signed) if within is None else list(within)}"
        )
    return InputFact(
        low=min(low, 0),
        high=max(high, 0),
        type=type_name(bits, signed),
        scale=_channel_scale(scale, value.value.ndim, channel_axis),
        length=int(value.value.shape[-1]) if value.value.ndim else 1,
        assumptions=tuple(notes),
    )


def _read_floats(value: FloatQuantTensor, channel_axis: int | None, exact: bool) -> InputFact:
    """Range and scale of a floating-point activation, over the finest step of its format."""
    if not exact:
        raise Unprovable(
            "its input was computed from floating-point numbers; quantize it once more"
        )
    numbers = numbers_of(value, "input")
    integers_of(value, numbers, "input")
    scale = _finite_scale(value.scale, "input") * numbers.step
    return InputFact(
        low=numbers.lowest,
        high=numbers.largest,
        type=numbers.type,
        scale=_channel_scale(scale, value.value.ndim, channel_axis),
        length=int(value.value.shape[-1]) if value.value.ndim else 1,
        assumptions=(_FIXED_POINT,),
    )


def _integers_and_scale(weight: object) -> tuple[np.ndarray, np.ndarray, str]:
    """Integers of quantized weights, what one of them stands for, and their datatype."""
    if isinstance(weight, FloatQuantTensor):
        numbers = numbers_of(weight, "weight")
        scale = _finite_scale(weight.scale, "weight") * numbers.step
        return integers_of(weight, numbers, "weight"), scale, numbers.type
    if not isinstance(weight, IntQuantTensor | GroupwiseIntQuantTensor):
        disabled = "unquantized" if isinstance(weight, Tensor) else type(weight).__name__
        raise Unprovable(f"its weights are {disabled}; use an integer weight quantizer")
    bits = single_integer(_array(weight.bit_width), "the weight bit width", 1, MAX_WEIGHT_BITS)
    if np.any(_array(weight.zero_point) != 0):
        raise Unprovable(
            "its weights have a zero point, and hardware multiplies the stored integers; use "
            "symmetric weights"
        )
    scale = _finite_scale(weight.scale, "weight")
    integers = _checked_integers(weight.value, scale, "weight", bits)
    low, high = quantizer_range(bits, bool(weight.signed), narrow=False)
    if bits == 1 and weight.signed:
        low, high = -1, 1
        if np.any(integers == 0):
            raise Unprovable("its weights have one bit, -1 or 1, and some of them are 0")
    if integers.size and (int(integers.min()) < low or int(integers.max()) > high):
        raise Unprovable(f"its weights lie outside their declared {bits} bits")
    return integers, scale, type_name(bits, bool(weight.signed))


def layer_integers(
    module: Layer,
    arrived: IntQuantTensor | FloatQuantTensor,
    fact: InputFact,
    transposed: bool,
    weight: object = None,
) -> tuple[Integers, str]:
    """Integer rows of a Brevitas layer for one call, and their datatype.

    Args:
        module: a quantized linear layer or convolution.
        arrived: its quantized input, which A2Q quantizers use.
        fact: what is known of that input.
        transposed: True for a transposed convolution, whose weights are [in, out/groups, ...].
        weight: its quantized weights, as this call used them; None to quantize them once more.

    Raises:
        Unprovable: the weights are not symmetric integers with one scale per row.
    """
    weight = module.quant_weight(arrived) if weight is None else weight
    integers, scale, declared = _integers_and_scale(weight)
    groups = getattr(module, "groups", 1)
    rows = _rows(integers, groups, transposed)
    scales = np.full(rows.shape[0], scale.reshape(-1)[0])
    per_output = scale.ndim > 0 and scale.size == scale.shape[0] == rows.shape[0] > 1
    if per_output and not transposed:
        scales = scale.reshape(-1)  # one for each output
    elif scale.size > 1:
        per_weight = _rows(np.broadcast_to(scale, integers.shape), groups, transposed)
        if np.any(per_weight != per_weight[:, :1]):
            span = _scale_span(per_weight)
            return Integers(rows, fact.low, fact.high, scale_span=span), declared
        scales = per_weight[:, 0]
    if fact.scale.size > 1:
        depthwise = not transposed and groups == fact.scale.size and integers.shape[1] == 1
        if not depthwise:
            raise Unprovable(
                "its input has a scale per channel, so products of different scales meet"
            )
        scales = scales * np.repeat(fact.scale, rows.shape[0] // groups)
    else:
        scales = scales * fact.scale
    bias = _bias(module, arrived, weight, scales)
    return Integers(rows, fact.low, fact.high, bias, step=scales), declared


def join(calls: Sequence[Found]) -> Found:
    """One dot product for all calls of a layer, over the union of their input ranges."""
    first = calls[0]
    for call in calls:
        mine, other = first.integers, call.integers
        if mine is None or other is None:
            return first if mine is None else call
        if (
            mine.scale_span != other.scale_span
            or mine.weights.shape != other.weights.shape
            or np.any(mine.weights != other.weights)
        ):
            return replace(
                first,
                integers=None,
                reason="its integer weights differ between calls; give every call the same input "
                "quantizer",
            )
        low, high = min(mine.low, other.low), max(mine.high, other.high)
        same = mine.bias is other.bias or (
            mine.bias is not None
            and other.bias is not None
            and np.array_equal(mine.bias, other.bias)
        )
        wider = (other.low, other.high) == (low, high)
        first = replace(
            first,
            integers=replace(
                mine,
                low=low,
                high=high,
                bias=mine.bias if same else None,
                step=mine.step if np.array_equal(mine.step, other.step) else np.nan,
            ),
            input_type=call.input_type if wider else first.input_type,
            assumptions=tuple(dict.fromkeys((*first.assumptions, *call.assumptions))),
        )
    return first


def _rows(weight: np.ndarray, groups: int, transposed: bool) -> np.ndarray:
    if not transposed:
        return weight.reshape(weight.shape[0], -1)
    split = (groups, weight.shape[0] // groups, weight.shape[1], -1)
    return weight.reshape(split).swapaxes(1, 2).reshape(groups * weight.shape[1], -1)


def _scale_span(per_weight: np.ndarray) -> int:
    """Inputs that share a scale in every row of [rows, K], counted from the first."""
    changes = np.flatnonzero((per_weight[:, 1:] != per_weight[:, :-1]).any(0)) + 1
    return int(np.gcd.reduce(changes))


def _bias(
    module: Any,
    arrived: IntQuantTensor | FloatQuantTensor,
    weight: object,
    step: np.ndarray,
) -> np.ndarray | None:
    """Bias in units of the accumulator, float64 [rows]."""
    parameter = getattr(module, "bias", None)
    if parameter is None:
        return None
    bias = module.bias_quant(parameter, arrived, weight)
    values = bias.value if isinstance(bias, IntQuantTensor) else bias
    return _array(values).reshape(-1) / step


def _channel_scale(scale: np.ndarray, dims: int, channel_axis: int | None) -> np.ndarray:
    """The scale as scalar, one per channel, or NaN where it differs between outputs only."""
    if scale.size == 1 or np.ptp(scale) == 0:
        return scale.reshape(-1)[0]
    axes = (1,) * (dims - scale.ndim) + scale.shape
    varying = [axis for axis, size in enumerate(axes) if size > 1]
    if channel_axis is None:
        if varying[-1] != dims - 1:
            return np.asarray(np.nan)
        raise Unprovable("its input has a scale per channel, so products of different scales meet")
    if varying != [channel_axis]:
        raise Unprovable("its input has a scale that varies inside one dot product")
    return scale.reshape(-1)


def _finite_scale(scale: Tensor, what: str) -> np.ndarray:
    array = _array(scale)
    if array.size == 0 or not np.isfinite(array).all() or np.any(array == 0):
        raise Unprovable(f"its {what} scale is 0, infinite or NaN")
    return array


def _checked_integers(
    value: Tensor, scale: np.ndarray, what: str, bits: int, largest_term: int = 0
) -> np.ndarray:
    """Integers value / scale, if it is as close to integers as the type of value allows.

    Args:
        value: integers × scale, rounded to its own type.
        scale: float64, broadcastable to value.
        what: name of the tensor in messages.
        bits: that the integers should have.
        largest_term: largest magnitude among the terms of the sum that gave value; 0 if it is no
            sum.

    Returns:
        int64, or int16 where that holds integers of so many bits and of one more; shape of value.
    """
    rows = len(value) if value.ndim else 1
    kind = np.int16 if bits < 15 else np.int64
    found = np.empty(value.shape, kind)
    scales = np.broadcast_to(scale, value.shape) if scale.size > 1 else scale.reshape(())
    step = max(_CHUNK * rows // max(value.numel(), 1), 1)
    # A few rows at a time: float64 copies of a whole matrix cost more than what is done with them.
    for start in range(0, rows, step):
        part = slice(start, start + step) if value.ndim else ()
        own = scales[part] if scales.ndim else scales
        nearest = _nearest_integers(_array(value[part]), own, what, value.dtype, largest_term)
        if kind == np.int16 and nearest.size and np.abs(nearest).max() >= 2**15:
            raise Unprovable(f"its {what} lies outside its declared {bits} bits")
        found[part] = nearest
    return found


def _nearest_integers(
    values: np.ndarray, scale: np.ndarray, what: str, dtype: torch.dtype, largest_term: int
) -> np.ndarray:
    """Float64 integers of a part of a tensor of this dtype; raises as `_checked_integers`."""
    eps = torch.finfo(dtype).eps
    ratio = values / scale
    nearest = np.rint(ratio)
    magnitude = np.abs(nearest)
    largest = float(magnitude.max(initial=0))
    if not np.isfinite(largest):
        raise Unprovable(f"its {what} contains NaN or infinity")
    # value = integer · scale was rounded once or twice in its own precision.
    tolerance = np.minimum(eps * np.maximum(magnitude, largest_term) + 1e-6, 0.499)
    ratio -= nearest
    if np.any(np.abs(ratio, out=ratio) > tolerance):
        raise Unprovable(f"its {what} values are not integer multiples of their scale")
    if largest * eps > 1:
        raise Unprovable(f"its {what} integers are too large for {dtype}; use a more precise dtype")
    return nearest


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().to(torch.float64).numpy()
