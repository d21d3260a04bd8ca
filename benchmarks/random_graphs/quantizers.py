"""Random quantizers: each puts the tensor at the end of a chain on a grid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import TensorProto

from benchmarks.random_graphs.builder import DOMAINS, QONNX, Builder

ROUNDINGS = ("ROUND", "HALF_EVEN", "CEIL", "FLOOR", "UP", "DOWN", "HALF_UP", "HALF_DOWN")
_STORED = {
    np.dtype(kind): (np.iinfo(kind).min, np.iinfo(kind).max)
    for kind in (np.int8, np.uint8, np.int16, np.uint16)
}


def scale(b: Builder) -> float:
    """A step: a power of two, or any."""
    return float(np.float32(b.pick(0.25, 0.5, 1, 1, 2, b.draw.uniform(0.01, 3))))


def steps(b: Builder, per_channel: bool = False) -> np.ndarray:
    """A step for the whole of x, or one for each channel (or each element of its last axis)."""
    if not per_channel:
        return np.full(b.pick((), (1,), (1,) * b.rank), scale(b), np.float32)
    axis = b.pick(1, b.rank - 1)
    shape = [1] * b.rank
    shape[axis] = b.shape[axis - 1]
    return np.float32([scale(b) for _ in range(shape[axis])]).reshape(shape)


def quant(b: Builder, per_channel: bool = False) -> None:
    """Quant or IntQuant, in any of its spellings."""
    step, bits = steps(b, per_channel), b.pick(1, 2, 3, 4, 5, 6, 8, 8, 16, b.number(1, 26))
    signed = b.number(0, 1)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    point = b.number(low, high) if b.draw.random() < 0.2 else 0
    kind = b.pick(np.float32, np.float32, np.float32, np.float64)
    parameters = b.constant(step), b.constant(kind(point)), b.constant(kind(bits))
    more = {"signed": signed, "narrow": b.number(0, 1)}
    if b.draw.random() < 0.7:
        more["rounding_mode"] = b.pick(*ROUNDINGS)
    b.x = b.op(b.pick("Quant", "IntQuant"), b.x, *parameters, domain=b.pick(*DOMAINS), **more)
    b.step = step.astype(np.float64)


def quant_per_channel(b: Builder) -> None:
    quant(b, per_channel=True)


def bipolar(b: Builder) -> None:
    step = steps(b)
    b.x = b.op("BipolarQuant", b.x, b.constant(step), domain=b.pick(*DOMAINS))
    b.step = step.astype(np.float64)


def truncated(b: Builder) -> None:
    """Quant, then Trunc to fewer bits."""
    one, bits, fewer = scale(b), b.number(4, 8), b.number(1, 4)
    signed, narrow = b.number(0, 1), b.number(0, 1)
    parameters = [b.constant(np.float32(v)) for v in (one, 0, bits)]
    x = b.op("Quant", b.x, *parameters, domain=QONNX, signed=signed, narrow=0)
    out = one * 2.0 ** (bits - fewer)
    parameters = [b.constant(np.float32(v)) for v in (one, 0, bits, out, fewer)]
    b.x = b.op(
        "Trunc", x, *parameters, domain=QONNX, signed=signed, narrow=narrow,
        rounding_mode=b.pick("FLOOR", "ROUND", "CEIL"),
    )  # fmt: skip
    b.step = np.float64(np.float32(out))


def thresholds(b: Builder) -> None:
    """MultiThreshold, whose count is scaled and shifted."""
    channels = b.pick(1, b.shape[0])
    count = b.number(1, 7)
    table = np.sort(np.float32(b.draw.uniform(-9, 9, (channels, count))), axis=1)
    bits = b.number(2, 4)
    declared = b.pick(f"UINT{bits}", f"INT{bits}", "BIPOLAR", "TERNARY")
    more: dict = {"out_dtype": declared}
    out, shift = b.pick(1.0, 1.0, 2.0, 0.5), b.pick(0, 0, -1, -4, 3)
    if out != 1 or shift:
        more |= {"out_scale": out, "out_bias": float(shift * out)}
    if b.rank == 4 and b.draw.random() < 0.5:
        more["data_layout"] = "NCHW"
    if b.rank == 3:
        more["data_layout"] = "NCW"
    b.x = b.op("MultiThreshold", b.x, b.constant(table), domain=b.pick(*DOMAINS), **more)
    b.step = np.float64(1.0 if out in (1, 2) else out)


def qdq(b: Builder) -> None:
    """QuantizeLinear and DequantizeLinear."""
    kinds = [np.int8, np.uint8] + ([np.int16, np.uint16] if b.opset >= 21 else [])
    kind = np.dtype(b.pick(*kinds))
    low, high = _STORED[kind]
    one = b.constant(np.float32(scale_of := scale(b)))
    point = np.array(b.pick(0, 0, b.number(low, high)), kind)
    bare = kind == np.uint8 and point == 0 and b.draw.random() < 0.5
    parameters = (one,) if bare else (one, b.constant(point))
    stored = b.op("QuantizeLinear", b.x, *parameters)
    b.x, b.step = b.op("DequantizeLinear", stored, *parameters), np.float64(scale_of)


def qdq_clipped(b: Builder) -> None:
    """Fewer than eight bits, as exporters write them."""
    one = b.constant(np.float32(scale_of := b.pick(0.25, 0.5, 1.0)))
    point = b.constant(np.array(0, kind := b.pick(np.int8, np.uint8)))
    stored = b.op("QuantizeLinear", b.x, one, point)
    if b.opset >= 12:  # before, Clip takes floating point alone
        ends = sorted((b.number(0, 100), b.number(0, 100)))
        stored = b.op("Clip", stored, *(b.constant(np.array(e, kind)) for e in ends))
    b.x, b.step = b.op("DequantizeLinear", stored, one, point), np.float64(scale_of)


PLAIN: tuple[Callable[[Builder], None], ...] = (qdq, qdq, qdq_clipped)
QONNX_ALONE = (quant, quant, quant, quant_per_channel, bipolar, truncated, thresholds)
ALL = (*QONNX_ALONE, *PLAIN)


def any_quantizer(b: Builder) -> None:
    """Puts x on a grid."""
    # QuantizeLinear came with operator set 10.
    chosen = b.pick(*(PLAIN if b.plain else ALL if b.opset >= 10 else QONNX_ALONE))
    b.trail.append(chosen.__name__)
    chosen(b)


def start(b: Builder, shape: tuple[int, ...]) -> None:
    """The first tensor: a float to be quantized, or integers from outside."""
    b.shape = shape
    how = b.number(0, 9)
    if how == 0:
        kind, low, high = b.pick((TensorProto.INT8, -128, 127), (TensorProto.UINT8, 0, 255))
        b.x = b.op("Cast", b.graph_input(kind, shape, low, high), to=TensorProto.FLOAT)
        b.step = np.float64(1)
        return
    if how == 1 and not b.plain:
        bits = b.number(1, 8)
        b.x = b.graph_input(TensorProto.FLOAT, shape, 0, 2**bits - 1)
        b.types[b.x], b.step = f"UINT{bits}" if bits > 1 else "BINARY", np.float64(1)
        return
    b.x = b.graph_input(TensorProto.FLOAT, shape, -1e6, 1e6)
    any_quantizer(b)
