"""A patch embedding as a linear layer on patches of the quantized image, and its class token.

A convolution whose windows meet but do not overlap multiplies patches by its weights. FINN's units
between it and the tokens would be lost in layouts that qonnx guesses wrong, so the integers of the
image are cut into patches in front of it. A class token that is put in front of the tokens is put
there as a patch of zeros, whose integers FINN can pad; what it held is added with the positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from brevitas_axe.export.finn.writing import (
    added,
    constant,
    options,
    producers,
    readers_of,
    sizes,
)
from brevitas_axe.export.indexed import IndexedGraph

# Tensor → the nodes that read it.
Readers = Mapping[str, list[onnx.NodeProto]]


@dataclass
class _Embedding:
    """The nodes of a patch embedding.

    Attributes:
        image, weight: their quantizers.
        conv: without a bias of its own.
        bias: the sum behind it.
        moves: what makes tokens of an image.
        token: what puts a class token in front of them; None where nothing does.
        positions: the sum with constants behind it; None where there is none.
    """

    image: onnx.NodeProto
    weight: onnx.NodeProto
    conv: onnx.NodeProto
    bias: onnx.NodeProto
    moves: list[onnx.NodeProto]
    token: onnx.NodeProto | None = None
    positions: onnx.NodeProto | None = None


def cut_patches(graph: IndexedGraph) -> None:
    """Rewrites the patch embeddings of a file, in place."""
    made, readers = producers(graph), readers_of(graph)
    for conv in [node for node in graph.nodes if node.op_type == "Conv"]:
        found = _embedding(graph, conv, made, readers)
        if found is not None:
            _as_linear(graph, found)
            made, readers = producers(graph), readers_of(graph)


def _embedding(
    graph: IndexedGraph, conv: onnx.NodeProto, made: Mapping[str, onnx.NodeProto], readers: Readers
) -> _Embedding | None:
    """The patch embedding of a convolution; None for any other convolution."""
    image, weight = (made.get(name) for name in conv.input[:2])
    if image is None or weight is None or not _meets(graph, conv):
        return None
    quantizers = image.op_type == weight.op_type == "Quant" and image.input[0] not in made
    bias = _next(readers, conv, "Add")
    reshape = _next(readers, bias, "Reshape")
    turn = _next(readers, reshape, "Transpose")
    if not quantizers or bias is None or reshape is None or turn is None:
        return None
    one_scale = all(graph.array(name).size == 1 for name in image.input[1:])
    flat = len(sizes(graph, reshape.output[0])) == 3
    if not (one_scale and flat and list(options(turn).get("perm", [])) == [0, 2, 1]):
        return None
    if _next(readers, image, "Conv") is not conv:
        return None
    found = _Embedding(image, weight, conv, bias, [reshape, turn])
    token = _next(readers, turn, "Concat")
    if token is not None and options(token)["axis"] == 1 and len(token.input) == 2:
        positions = _next(readers, token, "Add")
        known = token.input[0] in graph.constants and positions is not None
        if known and positions is not None and positions.input[1] in graph.constants:
            found.token, found.positions = token, positions
    return found


def _next(readers: Readers, node: onnx.NodeProto | None, op: str) -> onnx.NodeProto | None:
    """The only reader of a node, if it is of this kind."""
    found = [] if node is None else readers.get(node.output[0], [])
    return found[0] if len(found) == 1 and found[0].op_type == op else None


def _meets(graph: IndexedGraph, conv: onnx.NodeProto) -> bool:
    """Whether the windows of a two-dimensional convolution cover its image, each pixel once."""
    given, kernel = options(conv), list(sizes(graph, conv.input[1]))[2:]
    size = list(sizes(graph, conv.input[0]))[2:]
    return (
        len(kernel) == len(size) == 2
        and list(given.get("strides", [])) == kernel
        and not any(given.get("pads", []))
        and given.get("group", 1) == 1
        and set(given.get("dilations", [1])) == {1}
        and not any(pixels % window for pixels, window in zip(size, kernel, strict=True))
    )


def _as_linear(graph: IndexedGraph, found: _Embedding) -> None:
    """Reshape, transposition and reshape of integers, and a MatMul in the place of the Conv."""
    conv, image = found.conv, found.image
    rows, _, down, across = sizes(graph, conv.input[1])
    scale = graph.array(image.input[1]).reshape(())
    tokens = _patches(graph, image, (down, across))
    if found.token is not None:
        shape = list(sizes(graph, tokens))
        empty = constant(graph, np.zeros((1, 1, shape[2]), np.float32))
        _annotate(graph, empty, graph.array(image.input[3]))
        shape[1] += 1
        tokens = added(graph, "Concat", [empty, tokens], shape, axis=1)
    one, length, columns = sizes(graph, tokens)
    for name in found.weight.input[:3]:
        if graph.array(name).ndim == 4:
            graph.set_constant(name, graph.array(name).reshape(-1, _size(graph, name)).T)
    graph.set_type(found.weight.output[0], TensorProto.FLOAT, (columns, rows))
    conv.op_type = "MatMul"
    del conv.attribute[:]
    conv.input[0], conv.output[0] = tokens, graph.new_name()
    graph.set_type(conv.output[0], TensorProto.FLOAT, (one, length, rows))
    scaled = added(graph, "Mul", [conv.output[0], constant(graph, scale)], (one, length, rows))
    offset = graph.array(found.bias.input[1]).reshape(1, 1, -1)
    last: onnx.NodeProto = found.moves[-1]
    if found.token is not None and found.positions is not None:
        held = graph.array(found.token.input[0])
        positions = graph.array(found.positions.input[1])
        offset = np.concatenate([held, np.repeat(offset, length - 1, 1)], 1) + positions
        last = found.positions
    gone = [found.bias, *found.moves, found.token, found.positions]
    graph.nodes = [node for node in graph.nodes if not any(node is old for old in gone)]
    added(graph, "Add", [scaled, constant(graph, offset)], None)
    graph.nodes[-1].output[0] = last.output[0]


def _size(graph: IndexedGraph, name: str) -> int:
    """Columns of a weight, or 1 of its scales."""
    return graph.array(name)[0].size


def _patches(graph: IndexedGraph, image: onnx.NodeProto, window: tuple[int, int]) -> str:
    """Quantizes an image to integers of scale 1 and cuts these into patches, one per row."""
    down, across = window
    shape = sizes(graph, image.input[0])
    one, channels, height, width = shape
    n, m = height // down, width // across
    scaled = added(graph, "Div", [image.input[0], image.input[1]], shape)
    image.input[0] = scaled
    image.input[1] = constant(graph, np.ones_like(graph.array(image.input[1])))
    grid = (one, channels, n, down, m, across)
    tensor = added(graph, "Reshape", [image.output[0], _shape(graph, grid)], grid)
    order = [0, 2, 4, 1, 3, 5]
    turned = [grid[axis] for axis in order]
    tensor = added(graph, "Transpose", [tensor], turned, perm=order)
    flat = (one, n * m, channels * down * across)
    return added(graph, "Reshape", [tensor, _shape(graph, flat)], flat)


def _shape(graph: IndexedGraph, wanted: tuple[int, ...]) -> str:
    return constant(graph, np.array(wanted, np.int64))


def _annotate(graph: IndexedGraph, tensor: str, bits: np.ndarray) -> None:
    """Says that a constant holds signed integers, which FINN demands of what it pads with."""
    entry = graph.whole.graph.quantization_annotation.add(tensor_name=tensor)
    kind = f"INT{int(bits.item())}"
    entry.quant_parameter_tensor_names.add(key="finn_datatype", value=kind)
