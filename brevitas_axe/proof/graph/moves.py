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

from brevitas_axe.proof.graph.grid import Constant, Fact, Grid, Unknown, Unprovable, is_constant
from brevitas_axe.proof.graph.modelfile import Node
from brevitas_axe.proof.graph.quantizers import Reading, constant_values

# Elements that joining constants may reach: a small file can ask for any number of them.
MAX_GROWN = 2**24

Rule = Callable[[Node, list[Fact], Reading], Fact]


def run(node: Node, arrays: list[np.ndarray], reading: Reading) -> list[np.ndarray]:
    """A standard operator on constants, by onnx's reference implementation."""
    names = [i for i in node.inputs if i]
    inputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in dict.fromkeys(names)]
    outputs = [onnx.helper.make_tensor_value_info(n, 0, None) for n in node.outputs if n]
    graph = onnx.helper.make_graph([node.proto], "one", inputs, outputs)
    opset = onnx.helper.make_opsetid("", reading.opset)
    model = onnx.helper.make_model(graph, opset_imports=[opset])
    results = ReferenceEvaluator(model).run(None, dict(zip(names, arrays, strict=True)))
    return [np.asarray(result) for result in results]


def moves(pads_zero: bool = False, selects: bool = False, folds: bool = True) -> Rule:
    """Rule of an operator that only moves, repeats or drops elements of its first input.

    Args:
        pads_zero: it may insert zeros.
        selects: it keeps channels where they are, so a scale per channel survives.
        folds: constants go through it too (an operator that can blow them up does not).
    """

    def rule(node: Node, facts: list[Fact], reading: Reading) -> Fact:
        source = facts[0]
        if isinstance(source, Unknown):
            return source
        if isinstance(source, Constant) or is_constant(source):
            if not folds:
                raise Unprovable(f"{node.op} '{node.name}' of a constant is not followed")
            return _folded(node, source, facts[1:], reading, part=0)
        if not source.scalar and not selects:
            raise Unprovable(f"{node.op} '{node.name}' mixes channels of different scales")
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
    arrays = [constant_values(fact, f"an input of '{node.name}'") for fact in others]
    array = source.values if isinstance(source, Constant) else source.constant
    if node.op == "Gather":
        rows = array.shape[node.attribute("axis", 0)]
        if array.size // max(rows, 1) * arrays[0].size > MAX_GROWN:
            raise Unprovable(f"Gather '{node.name}' of a constant is too large")

    def function(array: np.ndarray) -> np.ndarray:
        return run(node, [array, *arrays], reading)[part]

    if isinstance(source, Constant):
        return replace(source, values=function(source.values))
    return source.mapped(function)


def gather(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Gather; of a constant table by computed indices, it is an embedding."""
    source, indices = facts
    table = isinstance(source, Grid) and is_constant(source) and source.scalar
    if table and isinstance(indices, Unknown):
        return replace(source, integers=None, weight=None)
    return moves()(node, facts, reading)


def dropout(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Dropout, which is the identity unless its third input turns training on."""
    if len(facts) == 3 and np.any(constant_values(facts[2], f"an input of '{node.name}'")):
        raise Unprovable(f"Dropout '{node.name}' is in training mode")
    return moves(selects=True, folds=False)(node, facts[:1], reading)


def pad(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Pad with zeros or with values of the tensor itself."""
    value = node.attribute("value", 0.0)
    if len(facts) > 2:
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
    return moves(selects=True, folds=False)(node, facts, reading)


def cast(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Cast to single or double precision."""
    if node.attribute("to", 0) not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        raise Unprovable(f"Cast '{node.name}' changes values")
    return moves(selects=True)(node, facts, reading)


MOVES: dict[str, Rule] = {
    **{op: moves() for op in ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")},
    "Slice": moves(),
    **{op: moves(folds=False) for op in ("Expand", "Tile", "DepthToSpace", "SpaceToDepth")},
    **{op: moves(folds=False) for op in ("GatherElements", "GatherND", "ReduceMax", "ReduceMin")},
    **{op: moves(selects=True, folds=False) for op in ("MaxPool", "GlobalMaxPool")},
    "Identity": moves(selects=True),
    "Trilu": moves(pads_zero=True, folds=False),
    "Gather": gather,
    "Dropout": dropout,
    "Pad": pad,
    "Resize": resize,
    "Upsample": resize,
    "Cast": cast,
}
QONNX_MOVES: dict[str, Rule] = {"Im2Col": im2col, "MaxPoolNHWC": moves(folds=False)}
