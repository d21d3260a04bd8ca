"""Random dot products at the end of a chain, and sums that hide one."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from benchmarks.random_graphs.builder import CHANNELS_LAST, DOMAINS, QONNX, Builder, Product
from benchmarks.random_graphs.quantizers import any_quantizer, scale


def weight(b: Builder, shape: tuple[int, ...], rows: int) -> tuple[str, np.ndarray | None]:
    """(a weight tensor of random integers, its step), with its rows along one axis."""
    how = b.pick(*("stored", "qdq", "cast") if b.plain else ("quant", "quant", "quant", "bipolar",
                 "annotated", "stored", "qdq", "cast", "product", "moved"))  # fmt: skip
    how = "stored" if how == "qdq" and b.opset < 10 else how
    b.trail.append(f"weights {how}")
    bits = b.pick(2, 3, 4, 8)
    integers = b.draw.integers(-(2 ** (bits - 1)), 2 ** (bits - 1), shape)
    one = np.full((), scale(b), np.float32)
    if b.number(0, 1):
        along = [1] * len(shape)
        along[rows] = shape[rows]
        if b.draw.random() < 0.1:
            along = list(shape)  # a step for each weight, which no accumulator can add
        one = np.float32([scale(b) for _ in range(int(np.prod(along)))]).reshape(along)
    if how in ("stored", "annotated"):
        name = b.constant(np.float32(integers))
        if how == "annotated" and name in {t.name for t in b.constants}:
            b.types[name] = f"INT{bits}"
        return name, np.float64(1)
    if how == "cast":
        return b.op("Cast", b.constant(integers.astype(np.int8)), to=TensorProto.FLOAT), np.float64(
            1
        )
    if how == "product":
        return b.op("Mul", b.constant(np.float32(integers)), b.constant(one)), np.float64(one)
    if how == "qdq":
        one, more = _along_an_axis(b, one, rows, len(shape))
        parameters = b.constant(one), b.constant(np.zeros(one.shape, np.int8))
        stored = b.constant(integers.astype(np.int8))
        x = b.op("DequantizeLinear", stored, *parameters, **more)
        wide = [1] * len(shape)
        wide[rows] = -1
        return x, np.float64(one).reshape(wide if one.size > 1 else ())
    if how == "bipolar":
        signs = b.constant(np.float32(integers))
        return b.op("BipolarQuant", signs, b.constant(one), domain=QONNX), np.float64(one)
    values = np.float32(integers) * one + b.draw.uniform(-0.4, 0.4, shape) * np.abs(one)
    order = [*range(len(shape))]
    if how == "moved":
        one = one.reshape(-1)[0]
        values, order = np.float32(integers) * one, b.draw.permutation(len(shape)).tolist()
        values = np.transpose(values, np.argsort(order))
    parameters = [b.constant(np.float32(v)) for v in (one, 0, bits)]
    more = {"signed": 1, "narrow": b.number(0, 1)}
    if b.number(0, 1):
        more["rounding_mode"] = b.pick("ROUND", "FLOOR", "CEIL", "HALF_UP", "DOWN")
    x = b.op("Quant", b.constant(np.float32(values)), *parameters, domain=b.pick(*DOMAINS), **more)
    if how == "moved":
        x = b.op("Transpose", x, perm=order)
    return x, np.float64(one)


def _along_an_axis(b: Builder, one: np.ndarray, rows: int, rank: int) -> tuple[np.ndarray, dict]:
    """One scale, or a vector of them; the axis has been there since operator set 13."""
    vector = one.size > 1 and one.ndim == rank and one.size == one.shape[rows]
    if not vector or b.opset < 13:
        return one.reshape(-1)[0].reshape(()), {}
    return one.reshape(-1), {"axis": b.pick(rows, rows - rank) if rows else 0}


def _note(b: Builder, op: str, left: tuple, right: tuple, **more: Any) -> str:
    """Appends the node and remembers the product."""
    last, bias = more.pop("channels_last", False), more.pop("bias", None)
    inputs = [left[0], right[0]]
    if bias is not None:
        inputs.append(b.constant(np.float32(bias)))
    name = f"product{len(b.products)}"
    b.x = b.op(op, *inputs, name=name, domain=CHANNELS_LAST if last else "", **more)
    b.products.append(Product(name, op, left[0], right[0], left[1], right[1], more, last, bias))
    b.step = None
    return name


def matmul(b: Builder) -> None:
    """X · w, w · x, or a vector."""
    inputs = b.shape[-1]
    if b.rank > 2 and b.number(0, 1):
        rows = b.number(1, 4)
        shape = (rows, b.shape[-2])
        _note(b, "MatMul", weight(b, shape, 0), (b.x, b.step))
        b.shape = (*b.shape[:-2], rows, b.shape[-1])
        return
    rows = b.number(1, 5)
    shape = (inputs,) if b.draw.random() < 0.1 else (inputs, rows)
    _note(b, "MatMul", (b.x, b.step), weight(b, shape, len(shape) - 1 if len(shape) > 1 else 0))
    b.shape = (*b.shape[:-1], *shape[1:])
    if len(shape) == 2 and b.draw.random() < 0.3:
        b.x = b.op("Add", b.x, b.constant(np.float32(b.draw.uniform(-9, 9, rows))))
    if not b.shape:
        b.x, b.shape = b.op("Reshape", b.x, b.constant(np.array([-1, 1]))), (1,)


def gemm(b: Builder) -> None:
    """Gemm of a matrix, either operand transposed or not."""
    if b.rank != 2:
        _flat(b)
    rows, transposed = b.number(1, 5), b.number(0, 1)
    shape = (rows, b.shape[0]) if transposed else (b.shape[0], rows)
    more: dict[str, Any] = {"transB": transposed}
    if b.number(0, 1):
        more |= {"alpha": b.pick(1.0, 0.5, -2.0), "beta": b.pick(1.0, 2.0)}
    if b.number(0, 1) or b.opset < 11:
        more["bias"] = b.draw.uniform(-9, 9, rows)
    left = (b.x, b.step)
    if b.draw.random() < 0.3 and (b.step is None or b.step.size == 1):
        left, more["transA"] = (b.op("Transpose", b.x, perm=[1, 0]), b.step), 1
    _note(b, "Gemm", left, weight(b, shape, 1 - transposed), **more)
    b.shape = (rows,)


def _flat(b: Builder) -> None:
    size = int(np.prod(b.shape))
    b.x, b.shape = b.op("Flatten", b.x, axis=1), (size,)
    if b.step is not None:
        b.step = np.float64(b.step.reshape(-1)[0]) if np.ptp(b.step) == 0 else None


def convolution(b: Builder) -> None:
    """Conv or ConvTranspose of one to three axes, grouped, strided, dilated and padded."""
    if b.rank < 3:
        b.x = b.op("Reshape", b.x, b.constant(np.array([-1, 1, b.shape[0]])))
        b.shape = (1, b.shape[0])
        b.step = b.step if b.scalar else None
    last = b.rank == 4 and not b.plain and b.number(0, 3) == 0
    channels, size = (b.shape[-1], b.shape[:-1]) if last else (b.shape[0], b.shape[1:])
    transposed = not last and b.number(0, 3) == 0
    group = b.pick(1, channels) if channels > 1 else 1
    if not last and channels % 2 == 0:
        group = b.pick(group, 2)
    each = b.number(1, 3)
    kernel = [min(b.number(1, 3), n) for n in size]
    strides = [b.number(1, 2) for _ in size]
    dilations = [b.number(1, 2) if k > 1 and d >= 2 * k - 1 else 1
                 for k, d in zip(kernel, size, strict=True)]  # fmt: skip
    pads = [b.number(0, 1) if k > 1 else 0 for k in kernel] * 2
    more: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "pads": pads}
    more |= {"dilations": dilations, "group": group}
    if not last and b.draw.random() < 0.3:
        more["bias"] = b.draw.uniform(-9, 9, each * group)
    if transposed:
        shape = (channels, each, *kernel)
        step = weight(b, shape, 1) if group == 1 else weight(b, shape, 0)
        if group > 1 and step[1] is not None and step[1].size > 1:
            by_group = step[1].reshape(group, -1)  # a sum is over the channels of one group
            step = (step[0], step[1] if (by_group == by_group[:, :1]).all() else None)
        _note(b, "ConvTranspose", (b.x, b.step), step, **more)
    else:
        shape = (each * group, channels // group, *kernel)
        if last:
            shape = (shape[0], *kernel, shape[1])
        _note(b, "Conv", (b.x, b.step), weight(b, shape, 0), channels_last=last, **more)
    b.shape = ()


def activations(b: Builder) -> None:
    """X times another quantization of itself: K inputs by the shape alone."""
    if b.rank == 2:
        b.x = b.op("Reshape", b.x, b.constant(np.array([-1, 1, b.shape[0]])))
        b.shape, b.step = (1, b.shape[0]), b.step if b.scalar else None
    left, shape, step = b.x, b.shape, b.step
    any_quantizer(b)
    order = [*range(b.rank - 2), b.rank - 1, b.rank - 2]
    right_step = b.step.reshape(-1)[:1] if b.step is not None and b.scalar else None
    right = b.op("Transpose", b.x, perm=order)
    _note(b, "MatMul", (left, step), (right, right_step))
    b.shape = (*shape[:-1], shape[-2])


PRODUCTS = (matmul, matmul, gemm, convolution, convolution, convolution, activations)


def hidden(b: Builder) -> None:
    """A dot product without an operator of that name, which must become an entry."""
    axis, size = b.rank - 1, b.shape[-1]
    if size < 2:
        return
    by = np.float32(b.draw.permutation(size) + 1)
    how = b.pick("mul", "div", "quant") if not b.plain else b.pick("mul", "div")
    if how != "quant" and b.step is not None and not b.scalar:
        return  # the factors might make the steps equal again
    if how == "quant":
        parameters = [b.constant(np.float32(v)) for v in (0, 8)]
        step = b.constant(by.reshape(*[1] * axis, size))
        x = b.op("Quant", b.x, step, *parameters, domain=QONNX, signed=1, narrow=0)
    else:
        x = b.op(how.title(), b.x, b.constant(by))
    name = f"hidden{len(b.hidden)}"
    if b.opset < 13:
        b.op("ReduceSum", x, axes=[axis], name=name)
    else:
        b.op("ReduceSum", x, b.constant(np.array([axis])), name=name)
    b.hidden.append(name)


def any_product(b: Builder) -> None:
    chosen = b.pick(*PRODUCTS)
    b.trail.append(chosen.__name__)
    chosen(b)
