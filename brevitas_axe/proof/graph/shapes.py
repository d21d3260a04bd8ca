"""Shapes of tensors: inferred, not read from the file.

They follow from the declared graph inputs and the initializers alone: the file's own value_info
could give a wrong length of a product. The output of an operator without a rule has no shape, so
that no proof depends on it. Small integer tensors (which Shape, Gather and Concat pass to Reshape)
are followed too, up to a fixed size; no other values are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from math import prod
from typing import Any

import onnx

from brevitas_axe.proof.graph.grid import Constant, Fact, Grid, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain
from brevitas_axe.proof.graph.operators import QONNX, Kind, kind_of, operator_set

# The length of an axis: a number, the name of a free length of a graph input, or unknown.
Size = int | str | None
Dims = tuple[Size, ...]
_MAX_RANK = 16
_MAX_STEP = 2**31
_SAME = (Kind.UNARY, Kind.NORM)
_SAME_OPS = ("Identity", "Cast", "CastLike", "Dropout", "CumSum", "Trilu", "BatchNormalization")


class Shapes:
    """Shapes of the tensors of a main graph.

    Args:
        file: the checked model.
        facts: of its tensors; only constants are read.
    """

    def __init__(self, file: ModelFile, facts: Mapping[str, Fact]) -> None:
        self._file, self._facts = file, facts
        self._values: dict[str, list[Size]] = {}
        self._functions = {(plain_domain(f.domain), f.name) for f in file.model.functions}

    def of(self, tensor: str) -> Dims | None:
        """The shape, or None if unknown."""
        return self._shapes.get(tensor)

    def dimension(self, tensor: str, axis: int) -> int | None:
        """Length of one axis, None where it is not fixed."""
        dims = self.of(tensor) or ()
        size = dims[axis] if -len(dims) <= axis < len(dims) else None
        return size if isinstance(size, int) else None

    def rank(self, tensor: str) -> int | None:
        """Number of axes, None where it is unknown."""
        dims = self.of(tensor)
        return None if dims is None else len(dims)

    @cached_property
    def _shapes(self) -> dict[str, Dims]:
        shapes: dict[str, Dims] = {}
        for value in self._file.graph.input:
            if value.type.tensor_type.HasField("shape"):
                dims = value.type.tensor_type.shape.dim
                shapes[value.name] = tuple(
                    d.dim_value if d.HasField("dim_value") else f"{value.name}.{axis}"
                    for axis, d in enumerate(dims)
                )
        for tensor, fact in self._facts.items():
            if is_constant(fact):
                self._note_constant(tensor, fact, shapes)
        for node in self._file.nodes:
            try:
                self._infer(node, shapes)
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
                continue  # a malformed node has no shape
        return shapes

    def _note_constant(self, tensor: str, fact: Fact, shapes: dict[str, Dims]) -> None:
        array = fact.integers if isinstance(fact, Grid) else None
        array = fact.values if isinstance(fact, Constant) else array
        if array is None:
            return
        shapes[tensor] = array.shape
        if array.dtype.kind in "iu" and array.size <= _MAX_RANK and array.ndim <= 1:
            self._values[tensor] = [int(v) for v in array.reshape(-1)]

    def _infer(self, node: Node, shapes: dict[str, Dims]) -> None:
        if (node.domain, node.op) in self._functions:
            return  # it may have the name of an operator, and do something else
        group = operator_set(node)
        values = _INTEGERS.get(node.op) if group == "" else None
        if values is not None and node.outputs and node.outputs[0] not in self._values:
            result = values(node, [self._values.get(i) for i in node.inputs], shapes)
            if result is not None and len(result) <= _MAX_RANK:
                self._values[node.outputs[0]] = result
        if not node.outputs or node.outputs[0] in shapes:
            return
        given = [shapes.get(i) if i else () for i in node.inputs]
        rule = self._rule(node, group)
        if rule is None or (given and given[0] is None):
            return
        results = rule(node, given, [self._values.get(i) for i in node.inputs])
        for output, dims in zip(node.outputs, results, strict=False):
            if output and dims is not None and len(dims) <= _MAX_RANK:
                shapes[output] = tuple(dims)

    def _rule(self, node: Node, group: str) -> Rule | None:
        kind = kind_of(node)
        if group == QONNX:
            return _broadcast if node.op in _QUANTIZERS else None
        if group:
            return None
        if node.op in _RULES:
            return _RULES[node.op]
        if kind in _SAME or node.op in _SAME_OPS:
            return _same
        wide = kind in (Kind.BINARY, Kind.PRODUCT) and node.op != "Range"
        return _broadcast if wide else None


Rule = Callable[[Node, list[Any], list[Any]], Sequence[Dims | None]]
_QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant", "FloatQuant")


def _broadcast(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    """Shape of a quantizer's output: its input broadcast with scale, zero point and bits."""
    if any(dims is None for dims in given):
        return [None]
    return [_joined(given)]


def _joined(shapes: Sequence[Dims]) -> Dims:
    rank = max(map(len, shapes))
    result = []
    for axis in range(-rank, 0):
        sizes = {dims[axis] for dims in shapes if len(dims) >= -axis} - {1}
        fixed = {size for size in sizes if isinstance(size, int)}
        if len(fixed) > 1:
            raise ValueError
        # With a number, a free length is 1 or that number; with another free length it is unknown.
        free = next(iter(sizes)) if len(sizes) == 1 else None
        result.append(1 if not sizes else fixed.pop() if fixed else free)
    return tuple(result)


def _transpose(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims]:
    order = node.attribute("perm", [*range(len(given[0]))][::-1], "INTS")
    if sorted(order) != [*range(len(given[0]))]:
        raise ValueError
    return [tuple(given[0][axis] for axis in order)]


def _reshape(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    source, target = given[0], values[1]
    if target is None:
        return [None]
    if any(isinstance(size, int) and size < -1 for size in target) or target.count(-1) > 1:
        raise ValueError
    keep = not node.attribute("allowzero", 0)
    dims = [source[i] if size == 0 and keep else size for i, size in enumerate(target)]
    if -1 in dims:
        left, right = list(source), [size for size in dims if size != -1]
        for size in list(right):
            if isinstance(size, str) and size in left:
                left.remove(size)  # a free length on both sides cancels
                right.remove(size)
        free = None
        if _fixed(left) and _fixed(right) and prod(right):
            free, rest = divmod(prod(left), prod(right))
            if rest:
                raise ValueError
        dims[dims.index(-1)] = free
    return [tuple(dims)]


def _fixed(sizes: Sequence[Size]) -> bool:
    return all(isinstance(size, int) for size in sizes)


def _flatten(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims]:
    axis = node.attribute("axis", 1)
    axis = axis + len(given[0]) if axis < 0 else axis
    parts = given[0][:axis], given[0][axis:]
    return [tuple(_product(part) for part in parts)]


def _product(sizes: Sequence[Size]) -> Size:
    """Product of lengths: a number, or the only free length if all others are 1."""
    free = [size for size in sizes if size != 1]
    fixed = [size for size in sizes if size is not None]
    if len(fixed) == len(sizes):
        return prod(fixed)
    return free[0] if len(free) == 1 else None


def _axes(node: Node, values: list[Any], rank: int) -> list[int] | None:
    axes = node.attribute("axes", [], "INTS") or (values[1] if len(values) > 1 else None)
    if axes is None or not _fixed(axes) or any(not -rank <= a < rank for a in axes):
        return None
    return [axis % rank for axis in axes]


def _squeeze(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    axes = _axes(node, values, len(given[0]))
    if not axes:  # of no axes, some readers squeeze none and others every one of length 1
        return [None]
    return [tuple(size for axis, size in enumerate(given[0]) if axis not in axes)]


def _unsqueeze(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    named = node.attribute("axes", [], "INTS") or (values[1] if len(values) > 1 else None)
    axes = _axes(node, values, len(given[0]) + len(named or []))
    if not axes or len(set(axes)) != len(axes):
        return [None]
    rest = iter(given[0])
    return [tuple(1 if a in axes else next(rest) for a in range(len(given[0]) + len(axes)))]


def _concat(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    if any(dims is None or len(dims) != len(given[0]) for dims in given):
        return [None]
    axis = node.attribute("axis", 1) % len(given[0])
    sizes = [dims[axis] for dims in given]
    dims = list(_joined([(*dims[:axis], 1, *dims[axis + 1 :]) for dims in given]))
    dims[axis] = sum(sizes) if _fixed(sizes) else None
    return [tuple(dims)]


def _split(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    axis = node.attribute("axis", 0) % len(given[0])
    sizes = node.attribute("split", [], "INTS") or (values[1] if len(values) > 1 else None)
    if sizes is None:
        total, parts = given[0][axis], len(node.outputs)
        if not isinstance(total, int) or total % parts or len(values) > 1:
            return [None]
        sizes = [total // parts] * parts
    return [(*given[0][:axis], size, *given[0][axis + 1 :]) for size in sizes]


def _gather(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    axis = node.attribute("axis", 0) % len(given[0])
    if given[1] is None:
        return [None]
    return [(*given[0][:axis], *given[1], *given[0][axis + 1 :])]


def _slice(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    rank = len(given[0])
    if len(values) > 1:
        starts, ends = values[1:3]
        axes = values[3] if len(values) > 3 and node.inputs[3] else [*range(len(starts))]
        steps = values[4] if len(values) > 4 and node.inputs[4] else [1] * len(starts)
    else:
        starts, ends = (node.attribute(name, [], "INTS") for name in ("starts", "ends"))
        axes, steps = node.attribute("axes", [*range(len(starts))], "INTS"), [1] * len(starts)
    dims = list(given[0])
    if axes is None:
        return [None]
    for index, axis in enumerate(axes):
        cut: list[Any] = [None if part is None else part[index] for part in (starts, ends, steps)]
        size = dims[axis % rank]
        # Readers differ in where a negative step begins, and in steps beyond any length.
        known = isinstance(size, int) and _fixed(cut) and 1 <= cut[2] < _MAX_STEP
        dims[axis % rank] = len(range(*slice(*cut).indices(size))) if known else None
    return [tuple(dims)]


def _expand(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    return [None if values[1] is None else _joined([given[0], tuple(values[1])])]


def _matmul(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    left, right = given
    if right is None or len(left) < 2 or len(right) < 2:
        return [None]
    return [(*_joined([left[:-2], right[:-2]]), left[-2], right[-1])]


def _gemm(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    left, right = given[:2]
    if right is None:
        return [None]
    rows = left[1 if node.attribute("transA", 0) else 0]
    return [(rows, right[0 if node.attribute("transB", 0) else 1])]


def _window(node: Node, image: Dims, kernel: Sequence[int]) -> Dims:
    """Spatial shape of the output of a convolution or pooling; None where it is not known."""
    ones = [1] * len(kernel)
    strides, dilations = (node.attribute(n, ones, "INTS") for n in ("strides", "dilations"))
    pads = node.attribute("pads", [0] * 2 * len(kernel), "INTS")
    plain = node.attribute("auto_pad", "NOTSET") == "NOTSET" and not node.attribute("ceil_mode", 0)
    if not plain or min(strides, default=1) < 1:
        return (None,) * len(image)
    both = [begin + end for begin, end in zip(pads, pads[len(kernel) :], strict=False)]
    return tuple(
        (size + pad - d * (k - 1) - 1) // stride + 1
        if isinstance(size, int) and size + pad > d * (k - 1)  # of larger windows, readers differ
        else None
        for size, pad, k, stride, d in zip(image, both, kernel, strides, dilations, strict=True)
    )


def _conv(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    image, weights = given[:2]
    if weights is None or not _fixed(weights[2:]):
        return [None]
    return [(image[0], weights[0], *_window(node, image[2:], weights[2:]))]


def _pool(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    kernel = node.attribute("kernel_shape", [], "INTS")
    return [(*given[0][:2], *_window(node, given[0][2:], kernel))]


def _global_pool(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims]:
    return [(*given[0][:2], *[1] * (len(given[0]) - 2))]


def _reduce(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims | None]:
    axes = _axes(node, values, len(given[0]))
    if axes is None or not axes:
        return [None]
    if node.attribute("keepdims", 1):
        return [tuple(1 if axis in axes else size for axis, size in enumerate(given[0]))]
    return [tuple(size for axis, size in enumerate(given[0]) if axis not in axes)]


def _same(node: Node, given: list[Any], values: list[Any]) -> Sequence[Dims]:
    return [given[0]]


_RULES: dict[str, Rule] = {
    "Transpose": _transpose,
    "Reshape": _reshape,
    "Flatten": _flatten,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Concat": _concat,
    "Split": _split,
    "Gather": _gather,
    "Slice": _slice,
    "Expand": _expand,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Conv": _conv,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), _same),
    **dict.fromkeys(("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2"), _reduce),
}


def _shape_values(node: Node, given: list[Any], shapes: dict[str, Dims]) -> list[Size] | None:
    dims = shapes.get(node.inputs[0])
    if dims is None:
        return None
    start, end = node.attribute("start", 0), node.attribute("end", len(dims))
    return list(dims[start:end])


def _picked(node: Node, given: list[Any], shapes: dict[str, Dims]) -> list[Size] | None:
    values, indices = given
    if values is None or indices is None or not _fixed(indices) or node.attribute("axis", 0) != 0:
        return None
    return [values[index] for index in indices]


def _chained(node: Node, given: list[Any], shapes: dict[str, Dims]) -> list[Size] | None:
    if any(values is None for values in given) or sum(map(len, given)) > _MAX_RANK:
        return None
    return [value for values in given for value in values]


def _passed(node: Node, given: list[Any], shapes: dict[str, Dims]) -> list[Size] | None:
    integers = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)
    return given[0] if node.op != "Cast" or node.attribute("to", 0) in integers else None


def _cut(node: Node, given: list[Any], shapes: dict[str, Dims]) -> list[Size] | None:
    single = all(v is not None and len(v) == 1 and _fixed(v) for v in given[1:])
    if given[0] is None or len(given) < 3 or not single:
        return None
    if len(given) > 3 and given[3] not in ([0], [-1]):
        return None
    step = given[4][0] if len(given) > 4 else 1
    return None if not 1 <= step < _MAX_STEP else given[0][given[1][0] : given[2][0] : step]


_INTEGERS: dict[str, Callable[[Node, list[Any], dict[str, Dims]], list[Size] | None]] = {
    "Shape": _shape_values,
    "Gather": _picked,
    "Concat": _chained,
    "Slice": _cut,
    **dict.fromkeys(("Identity", "Unsqueeze", "Squeeze", "Cast"), _passed),
}
