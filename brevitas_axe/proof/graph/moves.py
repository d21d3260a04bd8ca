"""Operators that only move, repeat, select or drop values.

Each rule takes (node, facts of its inputs, reading) and returns the fact of the first output, or
raises Unprovable. Constants go through onnx's own reference implementation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from brevitas_axe.proof.graph.grid import (
    Constant,
    Fact,
    Grid,
    Unknown,
    Unprovable,
    is_constant,
    representable_range,
)
from brevitas_axe.proof.graph.modelfile import Node
from brevitas_axe.proof.graph.operators import operator_set
from brevitas_axe.proof.graph.quantizers import Reading, constant_values

# Cost of one run of the reference implementation besides its elements.
_CALL = 2**14

Rule = Callable[[Node, list[Fact], Reading], Fact]


def run(node: Node, arrays: list[np.ndarray], reading: Reading) -> list[np.ndarray]:
    """A standard operator on constants, by onnx's reference implementation."""
    reading.budget.spend(_CALL, f"what {node.op} '{node.name}' moves")
    names = [i for i in node.inputs if i]
    inputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in dict.fromkeys(names)]
    outputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in node.outputs if n]
    graph = onnx.helper.make_graph([node.proto], "one", inputs, outputs)
    opset = onnx.helper.make_opsetid("", reading.opset)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    results = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))
    return [np.asarray(result) for result in results]


def moves(pads_zero: bool = False, stays: bool = False, folds: bool = True) -> Rule:
    """Rule of an operator that only moves, repeats or drops elements of its first input.

    Args:
        pads_zero: it may insert zeros.
        stays: every element keeps its place, so that scales may vary.
        folds: constants are folded too (not by operators that can make them much larger).
    """

    def rule(node: Node, facts: list[Fact], reading: Reading) -> Fact:
        source = facts[0]
        if isinstance(source, Unknown):
            return source
        if isinstance(source, Constant) or is_constant(source):
            if not folds:
                raise Unprovable(f"{node.op} '{node.name}' of a constant is not followed")
            return _folded(node, source, facts[1:], reading, part=0)
        if not source.scalar and not stays:
            raise Unprovable(f"{node.op} '{node.name}' mixes elements of different scales")
        if not pads_zero:
            return source
        return replace(source, low=min(source.low, 0), high=max(source.high, 0))

    return rule


def split_parts(node: Node, facts: list[Fact], reading: Reading) -> list[Fact]:
    """Facts of every output of a Split (packed query, key and value weights)."""
    source = facts[0]
    if isinstance(source, Grid) and source.integers is None:
        return [moves()(node, facts, reading)] * len(node.outputs)
    if isinstance(source, Unknown):
        return [source] * len(node.outputs)
    return [_folded(node, source, facts[1:], reading, part) for part in range(len(node.outputs))]


def _folded(
    node: Node, source: Constant | Grid, others: list[Fact], reading: Reading, part: int
) -> Fact:
    """A constant after the operator."""
    kept = [fact for fact in others if fact is not None]
    arrays = [constant_values(fact, f"an input of '{node.name}'") for fact in kept]
    array = source.values if isinstance(source, Constant) else source.constant
    size = array.size
    if node.op == "Gather":
        rows = array.shape[node.attribute("axis", 0)]
        size = array.size // max(rows, 1) * arrays[0].size

    reading.budget.spend(size * 2, f"what {node.op} '{node.name}' moves")

    def function(array: np.ndarray) -> np.ndarray:
        return run(node, [array, *arrays], reading)[part]

    if isinstance(source, Constant):
        return replace(source, values=function(source.values))
    return source.mapped(function)


def slices(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Slice; of a constant only forwards, because readers differ in where a step back begins."""
    if is_constant(facts[0]) and len(facts) > 4 and facts[4] is not None:
        steps = constant_values(facts[4], f"an input of '{node.name}'")
        if np.any(steps < 1) or np.any(steps >= 2**31):
            raise Unprovable(f"Slice '{node.name}' of a constant steps back, or beyond its length")
    return moves()(node, facts, reading)


def squeeze(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Squeeze and Unsqueeze; the reference implementation of old versions differs from others."""
    source = facts[0]
    if isinstance(source, Unknown) or not is_constant(source):
        return moves()(node, facts, reading)
    array = source.values if isinstance(source, Constant) else source.constant
    axes = list(node.attribute("axes", [], "INTS"))
    if len(facts) > 1:
        axes = constant_values(facts[1], f"an input of '{node.name}'").reshape(-1).tolist()
    added = len(axes) if node.op == "Unsqueeze" else 0
    rank = array.ndim + added
    named = {int(axis) % rank for axis in axes if -rank <= axis < rank}
    if not axes or len(named) < len(axes) or (reading.opset < 11 and min(axes) < 0):
        raise Unprovable(f"{node.op} '{node.name}' does not name its axes once each")
    if added:
        sizes = iter(array.shape)
        shape = [1 if axis in named else next(sizes) for axis in range(rank)]
    else:
        shape = [size for axis, size in enumerate(array.shape) if axis not in named]
    if isinstance(source, Constant):
        return replace(source, values=array.reshape(shape))
    return source.mapped(lambda values: values.reshape(shape))


def gather(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Gather; from a constant table by computed indices, it is an embedding."""
    source, indices = facts
    table = isinstance(source, Grid) and is_constant(source) and source.scalar
    if table and not is_constant(indices):
        return replace(source, integers=None, weight=None, stored=0)
    return moves()(node, facts, reading)


def dropout(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Dropout, which is the identity unless its third input or an old attribute turns it on."""
    training = facts[2] if len(facts) == 3 else None
    on = training is not None and np.any(constant_values(training, f"an input of '{node.name}'"))
    if on or (reading.opset < 7 and not node.attribute("is_test", 0)):
        raise Unprovable(f"Dropout '{node.name}' is in training mode")
    return moves(stays=True, folds=False)(node, facts[:1], reading)


def max_pool(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """MaxPool in which every window has an element of the image."""
    kernel = node.attribute("kernel_shape", [], "INTS")
    first = operator_set(node) == ""  # elsewhere the channels are the last axis
    ones, zeros = [1] * len(kernel), [0] * 2 * len(kernel)
    strides, dilations = (node.attribute(n, ones, "INTS") for n in ("strides", "dilations"))
    if node.op == "MaxPoolNHWC" and any(dilation != 1 for dilation in dilations):
        raise Unprovable(f"'{node.name}' has dilations, which {node.op} of qonnx does not heed")
    pads = node.attribute("pads", zeros, "INTS")
    same = node.attribute("auto_pad", "NOTSET").startswith("SAME")
    up = node.attribute("ceil_mode", 0)
    begins, ends = pads[: len(kernel)], pads[len(kernel) :]
    for size, stride, dilation, begin, end in zip(
        kernel, strides, dilations, begins, ends, strict=True
    ):
        padded = begin or end or up or same
        beyond = end + stride > size if up else end >= size
        if min(begin, end) < 0 or (padded and (dilation != 1 or beyond or begin >= size)):
            raise Unprovable(f"a window of MaxPool '{node.name}' may have nothing but padding")
    source = facts[0]
    channels = isinstance(source, Grid) and _varies_only_along(source.scale, -1 - len(kernel))
    return moves(stays=channels and first, folds=False)(node, facts[:1], reading)


def _varies_only_along(scale: np.ndarray, axis: int) -> bool:
    sizes = [size for index, size in enumerate(scale.shape, -scale.ndim) if index != axis]
    return all(size == 1 for size in sizes)


def pad(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Pad with zeros or with values of the tensor itself."""
    value = node.attribute("value", 0.0)
    if len(facts) > 2 and facts[2] is not None:
        value = constant_values(facts[2], f"the value of Pad '{node.name}'")
    if node.attribute("mode", "constant") == "constant" and np.any(np.asarray(value) != 0):
        raise Unprovable(f"Pad '{node.name}' pads with a value other than 0")
    return moves(pads_zero=True, folds=False)(node, facts, reading)


def im2col(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Im2Col of qonnx: patches of the image, padded with zeros."""
    if node.attribute("pad_value", 0) != 0:
        raise Unprovable(f"Im2Col '{node.name}' pads with a value other than 0")
    return moves(pads_zero=True, folds=False)(node, facts, reading)


def resize(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Resize and Upsample to the nearest value."""
    crop = node.attribute("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize"
    if node.attribute("mode", "nearest") != "nearest" or crop:
        raise Unprovable(f"{node.op} '{node.name}' interpolates between values")
    return moves(folds=False)(node, facts[:1], reading)


def cast(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Cast to single or double precision."""
    kind = node.attribute("to", 0)
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise Unprovable(f"Cast '{node.name}' changes values")
    result = moves(stays=True)(node, facts, reading)
    if isinstance(result, Constant):
        return replace(result, onnx_type=kind)
    if not isinstance(result, Grid):
        return result
    precision = np.dtype(np.float32 if kind == onnx.TensorProto.FLOAT else np.float64)
    low, high = representable_range(result.low, result.high, precision, f"Cast '{node.name}'")
    if result.integers is not None and np.abs(result.integers).max() > 2**24:
        raise Unprovable(f"Cast '{node.name}' rounds its values")
    return replace(result, low=low, high=high, wraps=False, stored=kind)


def identity(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Identity, and DebugMarker of Brevitas."""
    return facts[0]


MOVES: dict[str, Rule] = {
    **{op: moves() for op in ("Reshape", "Flatten", "Transpose")},
    **dict.fromkeys(("Squeeze", "Unsqueeze"), squeeze),
    "Slice": slices,
    **{op: moves(folds=False) for op in ("Expand", "Tile", "DepthToSpace", "SpaceToDepth")},
    **{op: moves(folds=False) for op in ("GatherElements", "GatherND", "ReduceMax", "ReduceMin")},
    "GlobalMaxPool": moves(folds=False),
    "MaxPool": max_pool,
    "Identity": identity,
    "Trilu": moves(pads_zero=True, folds=False),
    "Gather": gather,
    "Dropout": dropout,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "Cast": cast,
}
QONNX_MOVES: dict[str, Rule] = {
    "Im2Col": im2col,
    "MaxPoolNHWC": max_pool,
    "DebugMarker": identity,
}
