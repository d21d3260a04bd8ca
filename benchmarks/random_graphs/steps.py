"""Random operators between a quantizer and a dot product. Each keeps `Builder.step` true.

An operator that leaves the grid sets the step to None: a proof that rests on it is a false claim.
Operators that move elements do so too where the step varies, unless it stays with its elements.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper

from benchmarks.random_graphs.builder import CHANNELS_LAST, QONNX, Builder
from benchmarks.random_graphs.quantizers import any_quantizer, quant

_MOST = 64


def _moved(b: Builder, x: str, shape: tuple[int, ...]) -> None:
    """X after its elements changed places."""
    b.x, b.shape = x, shape
    if b.step is not None:
        b.step = np.float64(b.step.reshape(-1)[0]) if np.ptp(b.step) == 0 else None


def _axis(b: Builder) -> int:
    """An axis of x, not the batch, counted from either end."""
    axis = b.number(1, b.rank - 1)
    return axis if b.number(0, 1) else axis - b.rank


def _integers(b: Builder, *values: int) -> str:
    return b.constant(np.array(values, np.int64))


def relu(b: Builder) -> None:
    if b.step is not None and np.any(b.step < 0):
        b.step = None  # zero is on any grid, but a claim may not know where the ends went
    b.x = b.op("Relu", b.x)


def same(b: Builder) -> None:
    ops = ["Identity", "Dropout"] + ([] if b.plain else ["DebugMarker"])
    op = b.pick(*ops)
    marker = {"domain": QONNX, "export_debug_name": "here"} if op == "DebugMarker" else {}
    b.x = b.op(op, b.x, **marker)


def cast(b: Builder) -> None:
    b.x = b.op("Cast", b.op("Cast", b.x, to=TensorProto.DOUBLE), to=TensorProto.FLOAT)


def shift(b: Builder) -> None:
    """A constant number of steps, or half a step, which leaves the grid."""
    whole, op = b.draw.random() < 0.9, b.pick("Add", "Sub")
    shape = b.pick((), (1,), b.shape[-1:], (1, *b.shape))
    step = np.float32(1 if b.step is None else b.step.reshape(-1)[0])
    added = b.draw.integers(-20, 21, shape) * step + (0 if whole else step / 2)
    constant = b.constant(np.float32(added))
    b.x = b.op(op, *((b.x, constant) if op == "Sub" or b.number(0, 1) else (constant, b.x)))
    if not whole or not b.scalar:
        b.step = None


def factor(b: Builder) -> None:
    """One factor, or one for each element of an axis."""
    shape = [1] * b.rank
    if b.draw.random() < 0.3:
        axis = b.number(1, b.rank - 1)
        shape[axis] = b.shape[axis - 1]
    by = np.float32(b.draw.choice([0.5, 2, -1, 0.3, 4], tuple(shape)))
    if by.size == 1 and b.number(0, 1):
        by = by.reshape(())
    op, constant = b.pick("Mul", "Mul", "Div"), b.constant(by)
    first = op == "Div" or b.number(0, 1)
    b.x = b.op(op, *((b.x, constant) if first else (constant, b.x)))
    if b.step is not None:
        b.step = np.float64(np.float32(b.step) * by if op == "Mul" else np.float32(b.step) / by)


def twice(b: Builder) -> None:
    b.x = b.op("Add", b.x, b.x)


def joined(b: Builder) -> None:
    """Two tensors of one grid, side by side, added or chosen from."""
    other = b.x
    if b.step is not None and b.draw.random() < 0.6 and not b.plain and b.scalar:
        mine, step = b.x, b.step
        one, point, bits = (b.constant(np.float32(v)) for v in (step.reshape(-1)[0], 0, 3))
        other = b.op("Quant", b.x, one, point, bits, domain=QONNX, signed=1, narrow=b.number(0, 1))
        b.x, b.step = mine, step
    how = b.pick("Add", "Concat", "Where")
    if how == "Add":
        b.x = b.op("Add", b.x, other)
    elif how == "Where":
        mask = b.constant(b.draw.integers(0, 2, (1, *b.shape)).astype(bool))
        b.x = b.op("Where", mask, b.x, other)
    elif np.prod(b.shape) * 2 <= _MOST:
        axis = _axis(b)
        shape = list(b.shape)
        place = axis % b.rank - 1
        shape[place] *= 2
        _moved(b, b.op("Concat", b.x, other, axis=axis), tuple(shape))


def split(b: Builder) -> None:
    axis = _axis(b)
    place = axis % b.rank - 1
    if b.shape[place] < 2:
        return
    sizes = [first := b.number(1, b.shape[place] - 1), b.shape[place] - first]
    if b.opset < 13:
        x = b.op("Split", b.x, outs=2, axis=axis, split=sizes)
    else:
        x = b.op("Split", b.x, _integers(b, *sizes), outs=2, axis=axis)
    part = b.number(0, 1)
    shape = list(b.shape)
    shape[place] = sizes[part]
    _moved(b, b.nodes[-1].output[part] if part else x, tuple(shape))


def cut(b: Builder) -> None:
    """Slice, forwards or backwards."""
    axis = _axis(b)
    place = axis % b.rank - 1
    size = b.shape[place]
    start = b.number(0, size - 1)
    end, step = b.number(start + 1, size), 1
    if b.opset >= 10 and b.number(0, 1):
        start, end, step = size - 1, -size - 1, -1
    if b.opset < 10:
        x = b.op("Slice", b.x, starts=[start], ends=[end], axes=[axis % b.rank])
    else:
        x = b.op("Slice", b.x, *(_integers(b, v) for v in (start, end, axis, step)))
    shape = list(b.shape)
    shape[place] = len(range(*slice(start, None if step < 0 else end, step).indices(size)))
    _moved(b, x, tuple(shape))


def pad(b: Builder) -> None:
    axis = b.number(1, b.rank - 1)
    if np.prod(b.shape) // b.shape[axis - 1] * (b.shape[axis - 1] + 2) > _MOST:
        return
    pads = [0] * 2 * b.rank
    pads[axis], pads[b.rank + axis] = b.number(0, 1), b.number(0, 1)
    mode = b.pick("constant", "constant", "edge")
    if b.opset < 11:
        x = b.op("Pad", b.x, pads=pads, mode=mode)
    else:
        value = [b.constant(np.float32(0))] if b.number(0, 1) else []
        x = b.op("Pad", b.x, _integers(b, *pads), *value, mode=mode)
    shape = list(b.shape)
    shape[axis - 1] += pads[axis] + pads[b.rank + axis]
    _moved(b, x, tuple(shape))


def transpose(b: Builder) -> None:
    order = [0, *(1 + b.draw.permutation(b.rank - 1)).tolist()]
    shape = tuple(b.shape[axis - 1] for axis in order[1:])
    _moved(b, b.op("Transpose", b.x, perm=order), shape)


def reshape(b: Builder) -> None:
    """To another number of axes, and back where the number matters."""
    size = int(np.prod(b.shape))
    divisors = [d for d in range(1, size + 1) if size % d == 0]
    shapes = {2: (size,), 3: ((d := b.pick(*divisors)), size // d)}
    shape = shapes.get(b.rank, (b.shape[0], size // b.shape[0] // b.shape[-1], b.shape[-1]))
    if b.rank == 2 and b.number(0, 1):
        x = b.op("Flatten", b.x, axis=1)
    else:
        x = b.op("Reshape", b.x, _integers(b, -1, *shape))
    _moved(b, x, tuple(shape))


def squeezed(b: Builder) -> None:
    """One axis more, and none of it again."""
    axis = b.number(1, b.rank)
    if b.opset < 13:
        x = b.op("Squeeze", b.op("Unsqueeze", b.x, axes=[axis]), axes=[axis])
    else:
        axes = _integers(b, axis)
        x = b.op("Squeeze", b.op("Unsqueeze", b.x, axes), axes)
    _moved(b, x, b.shape)


def clip(b: Builder) -> None:
    step = np.float32(1 if b.step is None else abs(b.step.reshape(-1)[0]))
    low, high = sorted((b.number(-9, 9), b.number(-9, 9)))
    if b.opset < 11:
        b.x = b.op("Clip", b.x, min=float(low * step), max=float(high * step))
    else:
        ends = [b.constant(np.float32(end) * step) for end in (low, high)]
        b.x = b.op("Clip", b.x, *(ends if b.number(0, 1) else [ends[0]]))
    if not b.scalar:
        b.step = None


def gather(b: Builder) -> None:
    axis = _axis(b)
    place = axis % b.rank - 1
    indices = b.draw.integers(0, b.shape[place], b.number(1, b.shape[place] + 1))
    shape = list(b.shape)
    shape[place] = len(indices)
    if np.prod(shape) <= _MOST:
        _moved(b, b.op("Gather", b.x, _integers(b, *indices.tolist()), axis=axis), tuple(shape))


def repeat(b: Builder) -> None:
    if np.prod(b.shape) * 2 > _MOST:
        return
    shape = (*b.shape[:-1], b.shape[-1] * 2)
    _moved(b, b.op("Tile", b.x, _integers(b, *[1] * (b.rank - 1), 2)), shape)


def expand(b: Builder) -> None:
    wide = (b.number(1, 2), *b.shape[1:]) if b.shape[0] == 1 else b.shape
    _moved(b, b.op("Expand", b.x, _integers(b, 1, *wide)), wide)


def triangle(b: Builder) -> None:
    if b.opset >= 14 and b.rank > 2:
        _moved(b, b.op("Trilu", b.x, upper=b.number(0, 1)), b.shape)


def pool(b: Builder) -> None:
    """The maximum of windows, of whole channels, or of an axis."""
    how = b.pick("MaxPool", "MaxPool", "GlobalMaxPool", "ReduceMax", "MaxPoolNHWC", "last")
    if how == "ReduceMax" and b.opset < 18:
        axis = b.number(1, b.rank - 1)
        shape = list(b.shape)
        shape[axis - 1] = 1
        _moved(b, b.op("ReduceMax", b.x, axes=[axis], keepdims=1), tuple(shape))
        return
    if b.rank < 3 or how == "ReduceMax":
        return
    if how == "GlobalMaxPool":
        _moved(b, b.op("GlobalMaxPool", b.x), (b.shape[0], *[1] * (b.rank - 2)))
        return
    axes = b.rank - 2
    if how in ("MaxPoolNHWC", "last"):
        if b.rank != 4 or b.plain:
            return
        size, kernel = b.shape[:-1], [min(2, n) for n in b.shape[:-1]]
        domain, op = (QONNX, "MaxPoolNHWC") if how == "MaxPoolNHWC" else (CHANNELS_LAST, "MaxPool")
        more = {"kernel_shape": kernel, "strides": [1] * axes, "pads": [0] * 2 * axes}
        x = b.op(op, b.x, domain=domain, **more)
        _moved(b, x, (*(n - k + 1 for n, k in zip(size, kernel, strict=True)), b.shape[-1]))
        return
    kernel = [min(b.pick(1, 2), n) for n in b.shape[1:]]
    strides = [b.pick(1, 2) for _ in kernel]
    pads = [b.number(0, k - 1) if all(s == 1 for s in strides) else 0 for k in kernel]
    out = [
        (n + p - k) // s + 1 for n, p, k, s in zip(b.shape[1:], pads, kernel, strides, strict=True)
    ]
    x = b.op("MaxPool", b.x, kernel_shape=kernel, strides=strides, pads=[*pads, *[0] * len(pads)])
    step = b.step
    along = step is not None and step.ndim == b.rank and step.size == step.shape[1]
    _moved(b, x, (b.shape[0], *out))
    if along:
        b.step = step  # channels stay apart


def nearest(b: Builder) -> None:
    if b.rank != 4 or b.opset < 11 or np.prod(b.shape) * 4 > _MOST:
        return
    x = b.op("Resize", b.x, "" if b.opset >= 13 else b.constant(np.float32([])),
             b.constant(np.float32([1, 1, 2, 2])), mode="nearest")  # fmt: skip
    _moved(b, x, (b.shape[0], b.shape[1] * 2, b.shape[2] * 2))


def shuffled(b: Builder) -> None:
    """Depth to space, and back."""
    if b.rank == 4 and b.shape[0] % 4 == 0:
        x = b.op("DepthToSpace", b.x, blocksize=2)
        _moved(b, x, (b.shape[0] // 4, b.shape[1] * 2, b.shape[2] * 2))
    elif b.rank == 4 and b.shape[1] % 2 == 0 and b.shape[2] % 2 == 0:
        x = b.op("SpaceToDepth", b.x, blocksize=2)
        _moved(b, x, (b.shape[0] * 4, b.shape[1] // 2, b.shape[2] // 2))


def float_function(b: Builder) -> None:
    """A function that leaves the grid; a quantizer follows, or not."""
    op = b.pick("Sigmoid", "Tanh", "Abs", "LeakyRelu", "Softplus", "Neg", "Floor")
    b.x, b.step = b.op(op, b.x), None
    if b.draw.random() < 0.7:
        any_quantizer(b)


def quantized_again(b: Builder) -> None:
    """A second quantizer, also on the grid of the first."""
    if b.scalar and not b.plain and b.number(0, 1):
        quant(b)
    else:
        any_quantizer(b)


def called(b: Builder) -> None:
    """An operator inside a local function or a branch; nothing is known behind it."""
    if not b.plain or b.step is None:
        return
    if b.number(0, 1):
        name = f"f{len(b.functions)}"
        node = helper.make_node(b.pick("Relu", "Neg", "Identity"), ["a"], ["r"])
        opsets = [helper.make_opsetid("", b.opset)]
        b.functions.append(helper.make_function("local", name, ["a"], ["r"], [node], opsets))
        b.x = b.op(name, b.x, domain="local")
    else:
        branches = {
            key: _branch(op, b.x) for key, op in (("then_branch", "Neg"), ("else_branch", "Relu"))
        }
        b.x = b.op("If", b.constant(np.array(bool(b.number(0, 1)))), **branches)
    b.step = None


def _branch(op: str, x: str) -> onnx.GraphProto:
    value = helper.make_tensor_value_info(f"{op}.out", TensorProto.FLOAT, None)
    return helper.make_graph([helper.make_node(op, [x], [f"{op}.out"])], op, [], [value])


STEPS = (
    *(relu, same, cast, shift, shift, factor, factor, twice, joined, joined, split, cut, pad),
    *(transpose, reshape, squeezed, clip, gather, repeat, expand, triangle, pool, pool, nearest),
    *(shuffled, float_function, quantized_again, called),
)


def any_step(b: Builder) -> None:
    """One random operator."""
    chosen = b.pick(*STEPS)
    b.trail.append(chosen.__name__)
    chosen(b)
