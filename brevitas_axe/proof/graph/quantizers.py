"""Operators that put a tensor on a grid: QONNX, FINN and QDQ quantizers.

Each function takes (node, facts of its inputs, reading) and returns the Grid of its first output,
or raises Unprovable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx

from brevitas_axe.proof.graph.budget import WorkBudget
from brevitas_axe.proof.graph.grid import (
    MAX_INPUT_BITS,
    Constant,
    Fact,
    Grid,
    Unknown,
    Unprovable,
    checked_scale,
    is_constant,
    quantize,
    quantizer_range,
    representable_range,
    settled,
    single_integer,
    type_name,
)
from brevitas_axe.proof.graph.modelfile import Node

# What numpy does not have: some readers compute in these types, others in float32.
_SHORT_FLOATS = {
    kind
    for name, kind in onnx.TensorProto.DataType.items()
    if name.startswith(("BFLOAT", "FLOAT8", "FLOAT4"))
}


@dataclass(frozen=True)
class Reading:
    """How a file is read.

    Attributes:
        honour_narrow: count a narrow input quantizer without its unused integer. FINN does not.
        opset: version of the standard operators.
        budget: limits the size of constants.
        imports: version of every operator set that the file imports, by its domain.
    """

    honour_narrow: bool = False
    opset: int = 11
    budget: WorkBudget = field(default_factory=WorkBudget)
    imports: Mapping[str, int] = field(default_factory=dict)


def constant_values(fact: Fact, what: str) -> np.ndarray:
    """Values of a constant tensor."""
    if isinstance(fact, Constant):
        if fact.onnx_type in _SHORT_FLOATS:
            raise Unprovable(
                f"{what} is of a short floating-point type, which only some readers widen"
            )
        return fact.values
    if isinstance(fact, Grid) and fact.integers is not None:
        return fact.values
    why = f": {fact.reason}" if isinstance(fact, Unknown) and fact.reason else ""
    raise Unprovable(f"{what} is not a constant of the file{why}")


def quant(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """QONNX Quant / IntQuant: clip(round(x / scale + zero point)), minus the zero point."""
    where = f"quantizer '{node.name}'"
    if len(facts) != 4:
        raise Unprovable(f"{where} has {len(facts)} inputs instead of 4")
    scale = checked_scale(constant_values(facts[1], f"the scale of {where}"), where)
    bits, widths = _bit_width(facts[3], f"the bit width of {where}")
    points = constant_values(facts[2], f"the zero point of {where}")
    zero_point = single_integer(points, f"the zero point of {where}", -(2**31), 2**31)
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    coarsest = _coarsest(scale.dtype, points.dtype, widths)
    source = facts[0]
    if is_constant(source):
        mode = node.attribute("rounding_mode", "ROUND")
        values = constant_values(source, where)
        reading.budget.spend(values.size, f"what {where} rounds")
        if np.broadcast_shapes(scale.shape, values.shape) != values.shape:
            raise Unprovable(f"the scale of {where} does not fit its weights")
        if isinstance(source, Grid) and not settled(values, scale, source.scale, mode):
            raise Unprovable(
                f"{where} rounds weights that are quantized already, and they lie so near to the "
                "middle between two integers that readers of the file may round them differently"
            )
        stored = quantize(values, scale, zero_point, bits, signed, narrow, mode, widths)
        name = source.weight if isinstance(source, Grid) else getattr(source, "name", None)
        return _constant(stored, zero_point, _floating(scale), type_name(bits, signed), name)
    low, high = quantizer_range(bits, signed, narrow and reading.honour_narrow)
    ends = representable_range(low, high, coarsest, where)
    if ends != (low, high) and zero_point:
        raise Unprovable(f"{where} has a zero point, and more bits than its float type can hold")
    return _dynamic(*ends, zero_point, _floating(scale), type_name(bits, signed), where)


def bipolar_quant(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """QONNX BipolarQuant: +1 for x ≥ 0, else -1."""
    where = f"quantizer '{node.name}'"
    scale = checked_scale(constant_values(facts[1], f"the scale of {where}"), where)
    source = facts[0]
    if isinstance(source, Constant):
        if not np.isfinite(source.values).all():
            raise Unprovable(f"'{source.name}' holds values that are infinite or NaN")
        reading.budget.spend(source.values.size, f"what {where} rounds")
        if np.broadcast_shapes(scale.shape, source.values.shape) != source.values.shape:
            raise Unprovable(f"the scale of {where} does not fit its weights")
        stored = np.where(source.values >= 0, 1, -1).astype(np.int64)
        return _constant(stored, 0, _floating(scale), "BIPOLAR", source.name)
    if is_constant(source):
        raise Unprovable(f"{where} rounds weights that are quantized already")
    return Grid(_floating(scale), -1, 1, "BIPOLAR")


def trunc(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """QONNX Trunc, version 2, which clips to its output bit width."""
    where = f"Trunc '{node.name}'"
    if len(facts) != 6:
        raise Unprovable(
            f"{where} is of version 1, which does not clip; export with Brevitas ≥ 0.12"
        )
    if reading.imports.get(node.domain, 2) < 2:
        raise Unprovable(f"{where} has the inputs of version 2, but the file imports version 1")
    scale = checked_scale(constant_values(facts[4], f"the scale of {where}"), where)
    bits, widths = _bit_width(facts[5], f"the bit width of {where}")
    zero_point = constant_values(facts[2], f"the zero point of {where}")
    single_integer(zero_point, f"the zero point of {where}", 0, 0)
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    # QONNX clips one-bit Trunc to [-1, 0], which [-1, 1] contains.
    low, high = quantizer_range(bits, signed, narrow and reading.honour_narrow)
    low, high = representable_range(
        low, high, _coarsest(scale.dtype, zero_point.dtype, widths), where
    )
    return Grid(_floating(scale), low, high, type_name(bits, signed))


def multi_threshold(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """MultiThreshold: out_scale × (number of thresholds at or below x) + out_bias."""
    where = f"MultiThreshold '{node.name}'"
    thresholds = constant_values(facts[1], f"the thresholds of {where}")
    if thresholds.ndim != 2:
        raise Unprovable(f"the thresholds of {where} are not two-dimensional")
    scale, bias = node.attribute("out_scale", 1.0), node.attribute("out_bias", 0.0)
    declared = node.attribute("out_dtype", "")
    low, high = datatype_range(declared, f"out_dtype of {where}")
    # With an integer out_scale the values are integers (BIPOLAR is 2·count - 1).
    whole = scale == int(scale) and bias == int(bias) if np.isfinite([scale, bias]).all() else False
    step = 1.0 if whole else scale
    grid_scale = checked_scale(np.asarray(step, np.float32), where)
    ends = [bias / step, (scale * thresholds.shape[1] + bias) / step]
    if any(end != int(end) for end in ends):
        raise Unprovable(f"out_bias of {where} is no multiple of its out_scale")
    # Hardware sizes the accumulator by the declared type, so both count.
    counted = min(map(int, ends)), max(map(int, ends))
    typed = None if counted == (low, high) else (low, high)
    return Grid(grid_scale, *counted, declared, typed=typed)


def quant_avg_pool(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """QuantAvgPool2d: sum over the window, shifted right to obits."""
    source = facts[0]
    if not isinstance(source, Grid) or not source.scalar or source.scale != 1:
        raise Unprovable(f"the input of QuantAvgPool2d '{node.name}' is not made of integers")
    window = node.attribute("kernel", 1) ** 2
    input_bits, bits = node.attribute("ibits", 1), node.attribute("obits", 1)
    if not 1 <= window <= 2**40 or not 1 <= input_bits <= 32 or not 1 <= bits <= 32:
        raise Unprovable(f"QuantAvgPool2d '{node.name}' has impossible attributes")
    shift = max(((2**input_bits - 1) * window).bit_length() - bits, 0)
    declared = type_name(bits, bool(node.attribute("signed", 0)))
    low, high = datatype_range(declared, node.name)
    low, high = min(low, source.low * window >> shift), max(high, source.high * window >> shift)
    return Grid(source.scale, low, high, declared, assumptions=source.assumptions)


def quantize_linear(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """QuantizeLinear: the stored integers, as a grid of scale 1."""
    where = f"QuantizeLinear '{node.name}'"
    if len(facts) > 2 and stored_type(facts[2]) == 0:
        raise Unprovable(f"the zero point of {where} is not a constant of the file")
    if node.attribute("block_size", 0):
        raise Unprovable(f"{where} is blocked, and a scale per block has no single accumulator")
    zero_point = facts[2] if len(facts) > 2 else None
    kind = node.attribute("output_dtype", 0)
    if zero_point is not None:
        if kind not in (0, stored_type(zero_point)):
            raise Unprovable(f"{where} and its zero point have different types")
        kind = stored_type(zero_point)
    declared, low, high = _onnx_integers(kind or onnx.TensorProto.UINT8, where)
    source = facts[0]
    if isinstance(source, Constant):
        scale = constant_values(facts[1], f"the scale of {where}")
        offset = 0 if zero_point is None else constant_values(zero_point, where).astype(np.int64)
        scale, offset = (_along_axis(node, v, source.values) for v in (scale, offset))
        reading.budget.spend(source.values.size, f"what {where} rounds")
        scaled = np.round(source.values / checked_scale(scale, where))
        if source.onnx_type != onnx.TensorProto.FLOAT or scale.dtype != np.float32:
            raise Unprovable(f"{where} rounds weights that are not float32")
        if scaled.shape != source.values.shape or not np.isfinite(scaled).all():
            raise Unprovable(f"'{source.name}' cannot be quantized by {where}")
        stored = (np.clip(scaled, -(2.0**40), 2.0**40).astype(np.int64) + offset).clip(low, high)
        rounded = _constant(stored, 0, np.ones(()), declared, source.name)
        return replace(rounded, stored=kind, wraps=True)
    if is_constant(source):
        raise Unprovable(f"{where} rounds weights that are quantized already")
    return Grid(np.ones(()), low, high, declared, wraps=True)


def dequantize_linear(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """DequantizeLinear: (stored integer - zero point) × scale."""
    where = f"DequantizeLinear '{node.name}'"
    if node.attribute("block_size", 0):
        raise Unprovable(f"{where} is blocked, and a scale per block has no single accumulator")
    scale = constant_values(facts[1], f"the scale of {where}")
    offset = np.zeros((), np.int64)
    if len(facts) > 2:
        offset = constant_values(facts[2], f"the zero point of {where}").astype(np.int64)
    source = facts[0]
    if isinstance(source, Constant):
        declared, _, _ = _onnx_integers(source.onnx_type, where)
        reading.budget.spend(source.values.size, f"what {where} scales")
        source = Grid(
            np.ones(()), 0, 0, declared, source.values.astype(np.int64), weight=source.name
        )
    if not isinstance(source, Grid) or not source.scalar or source.scale != 1:
        raise Unprovable(f"the input of {where} is not made of integers")
    if source.integers is not None:
        scale, offset = (_along_axis(node, v, source.integers) for v in (scale, offset))
        scale = checked_scale(scale, where)
        return _constant(source.integers, offset, _floating(scale), source.type, source.weight)
    if scale.size > 1 or offset.size > 1:
        raise Unprovable(f"{where} has a scale per channel")
    scale, offset = checked_scale(scale, where), int(offset.reshape(-1)[0])
    ends = representable_range(source.low, source.high, scale.dtype, where)
    if offset and ends != (source.low, source.high):
        raise Unprovable(f"{where} has a zero point, and more bits than its float type can hold")
    return _dynamic(*ends, offset, _floating(scale), source.type, where)


def stored_type(fact: Fact) -> int:
    """TensorProto element type of a constant tensor, 0 where it is not known."""
    if isinstance(fact, Constant):
        return fact.onnx_type
    return fact.stored if isinstance(fact, Grid) else 0


def datatype_range(name: str, what: str) -> tuple[int, int]:
    """Range of a qonnx integer DataType; raises Unprovable for any other."""
    special = {"BIPOLAR": (-1, 1), "TERNARY": (-1, 1), "BINARY": (0, 1)}
    if name in special:
        return special[name]
    digits = name.removeprefix("U").removeprefix("INT")
    if name.removeprefix("U").startswith("INT") and digits.isascii() and digits.isdigit():
        bits = int(digits[:4])
        if 1 <= bits <= MAX_INPUT_BITS:
            signed = not name.startswith("U")
            return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    raise Unprovable(f"{what} is '{name[:40]}', no integer datatype")


def _onnx_integers(kind: int, where: str) -> tuple[str, int, int]:
    """(qonnx name, low, high) of a TensorProto integer type."""
    name = (
        onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else ""
    )
    low, high = datatype_range(name, f"the integer type of {where}")
    return name, low, high


def _along_axis(node: Node, values: np.ndarray | int, tensor: np.ndarray) -> np.ndarray:
    """A QDQ parameter, shaped to broadcast along its axis."""
    values = np.asarray(values)
    if values.size == 1:
        return values.reshape(())
    axis = node.attribute("axis", 1)
    if values.ndim != 1 or not -tensor.ndim <= axis < tensor.ndim:
        raise Unprovable(f"the parameters of '{node.name}' do not fit its axis")
    if values.size != tensor.shape[axis]:
        raise Unprovable(f"the parameters of '{node.name}' do not fit its axis")
    shape = [1] * tensor.ndim
    shape[axis] = -1
    return values.reshape(shape)


def _floating(scale: np.ndarray) -> np.ndarray:
    """A scale as a floating-point array; exporters write whole scales as integers too."""
    return scale if scale.dtype.kind == "f" else scale.astype(np.float64)


def _constant(
    stored: np.ndarray,
    zero_point: int | np.ndarray,
    scale: np.ndarray,
    declared: str,
    name: str | None,
) -> Grid:
    integers = stored - zero_point
    if integers.size == 0:
        raise Unprovable(f"'{name}' is empty")
    return Grid(
        scale=scale,
        low=int(integers.min()),
        high=int(integers.max()),
        type=declared,
        integers=integers,
        asymmetric=bool(np.any(np.asarray(zero_point) != 0)),
        weight=name,
    )


def _bit_width(fact: Fact, what: str) -> tuple[int, np.dtype]:
    """(the bit width, the type in which QONNX computes the ends of its range)."""
    values = constant_values(fact, what)
    bits = single_integer(values, what, 1, MAX_INPUT_BITS)
    kind = values.dtype
    # QONNX computes 2^bits and -2^(bits - 1) in this type.
    if kind.kind != "f" and (kind.kind != "i" or bits >= 8 * kind.itemsize - 1):
        raise Unprovable(f"{what} is of type {kind}, in which its range wraps around")
    return bits, kind


def _coarsest(*kinds: np.dtype) -> np.dtype:
    """The floating-point type of fewest bits; QONNX gives its results as float32 at best."""
    floats = [kind for kind in kinds if kind.kind == "f"]
    return min([np.dtype(np.float32), *floats], key=lambda kind: kind.itemsize)


def _dynamic(
    low: int, high: int, zero_point: int, scale: np.ndarray, declared: str, where: str
) -> Grid:
    if zero_point:
        float32 = np.dtype(np.float32)
        low, high = representable_range(low - zero_point, high - zero_point, float32, where)
        low, high = low + zero_point, high + zero_point
    note = (f"{where} has zero point {zero_point}, which is subtracted before the product",)
    return Grid(
        scale=scale,
        low=low - zero_point,
        high=high - zero_point,
        type=declared,
        asymmetric=zero_point != 0,
        assumptions=note if zero_point else (),
    )


QUANTIZERS = {
    "Quant": quant,
    "IntQuant": quant,
    "BipolarQuant": bipolar_quant,
    "Trunc": trunc,
    "MultiThreshold": multi_threshold,
    "QuantAvgPool2d": quant_avg_pool,
}
STANDARD_QUANTIZERS = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
}
