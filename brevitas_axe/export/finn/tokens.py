"""The form in which FINN builds a transformer's file: what lies around its dot products, moved.

FINN follows integers through reshapes and transpositions, but neither scales nor thresholds; it
knows no layer norm with a gain; and it takes tensors of three axes as tokens, channels last. Every
step here keeps the function, and the integers of every dot product.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto

from brevitas_axe.export.finn.patches import cut_patches
from brevitas_axe.export.finn.writing import added, constant, options, producers, readers_of
from brevitas_axe.export.indexed import IndexedGraph

_MOVES = ("Reshape", "Transpose")
_QUANTIZERS = ("Quant", "IntQuant")
_NORM = "LayerNormalization"


def in_tokens(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A file in that form; itself where it has no layer norm and no product of two activations.

    Images are cut into patches before they are quantized, quantizers stand before reshapes and
    transpositions, gains and biases behind their layer norm, and what quantizes one tensor twice in
    the same way does so once.
    """
    if not is_transformer(proto):
        return proto
    graph = IndexedGraph(proto)
    for norm in [node for node in graph.nodes if node.op_type == _NORM]:
        _extract_gain(graph, norm)
    _quantize_before_moves(graph)
    _quantize_once(graph)
    _stream_first(graph)
    cut_patches(graph)
    graph.infer_shapes()
    return graph.model()


def is_transformer(proto: onnx.ModelProto) -> bool:
    """Whether a file has a layer norm, or a product of two activations."""
    constants = {tensor.name for tensor in proto.graph.initializer}
    computed = {value.name for value in proto.graph.input} - constants
    for node in proto.graph.node:
        products = node.op_type == "MatMul" and computed.issuperset(node.input)
        if products or node.op_type == _NORM:
            return True
        if not computed.isdisjoint(node.input):
            computed.update(node.output)
    return False


def _extract_gain(graph: IndexedGraph, norm: onnx.NodeProto) -> None:
    """Multiplies and adds behind a layer norm what it has as gain and bias."""
    shape, output = graph.shape(norm.output[0]), norm.output[0]
    if any(name not in graph.constants for name in norm.input[1:3]) or any(norm.output[1:]):
        return
    gain, *bias = [graph.array(name) for name in norm.input[1:3]]
    del norm.input[1:]
    norm.input.extend(constant(graph, same(gain)) for same in (np.ones_like, np.zeros_like))
    tensor = norm.output[0] = graph.new_name()
    graph.set_type(tensor, TensorProto.FLOAT, shape)
    for op, values in zip(("Mul", "Add"), (gain, *bias), strict=False):
        tensor = added(graph, op, [tensor, constant(graph, values)], shape)
    graph.nodes[-1].output[0] = output


def _quantize_before_moves(graph: IndexedGraph) -> None:
    """Moves what treats all numbers alike in front of reshapes and transpositions."""
    made, readers = producers(graph), readers_of(graph)
    ends = {value.name for value in graph.whole.graph.output}
    waiting = list(graph.nodes)
    for node in waiting:  # which grows
        while (move := made.get(node.input[0])) is not None and move.op_type in _MOVES:
            first, between, last = move.input[0], move.output[0], node.output[0]
            alone = len(readers[between]) == 1 and not ends & {between, last}
            if not alone or first not in made or not _is_alike(graph, node):
                break
            # The tensor behind a quantizer keeps its name, which tells the module.
            behind = readers.get(last, [])
            for reader in behind:
                reader.input[:] = [between if name == last else name for name in reader.input]
            node.input[0], move.input[0] = first, last
            readers[first] = [node if reader is move else reader for reader in readers[first]]
            readers[last], readers[between] = [move], behind
            graph.set_type(last, TensorProto.FLOAT, graph.shape(first))
            waiting += behind  # they are behind the move now


def _is_alike(graph: IndexedGraph, node: onnx.NodeProto) -> bool:
    """Whether a node is a quantizer of one scale, or a product with one number."""
    others = node.input[1:]
    known = node.op_type in (*_QUANTIZERS, "Mul", "Div") and bool(others)
    return known and all(n in graph.constants and graph.array(n).size == 1 for n in others)


def _quantize_once(graph: IndexedGraph) -> None:
    """Removes quantizers that do to one tensor what another does."""
    seen: dict[tuple, str] = {}
    same: dict[str, str] = {}
    for node in graph.nodes:
        if node.op_type not in _QUANTIZERS or node.input[0] in graph.constants:
            continue
        kind = tuple(sorted(options(node).items()))
        numbers = tuple(graph.array(name).tobytes() for name in node.input[1:])
        first = seen.setdefault((node.input[0], kind, numbers), node.output[0])
        if first != node.output[0]:
            same[node.output[0]] = first
    graph.nodes = [node for node in graph.nodes if node.output[0] not in same]
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            node.input[index] = same.get(name, name)


def _stream_first(graph: IndexedGraph) -> None:
    """Names the operand of a sum first that was there first: qonnx takes its layout for the sum's.

    It guesses that of a branch wrong behind heads of attention that become tokens again.
    """
    place = {name: index for index, node in enumerate(graph.nodes) for name in node.output}
    for node in graph.nodes:
        if node.op_type == "Add" and all(name in place for name in node.input):
            node.input[:] = sorted(node.input, key=place.__getitem__)
