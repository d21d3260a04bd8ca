"""Sizes of the outputs of one node, before it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, prod

import numpy as np
import onnx

from brevitas_axe.proof.graph.modelfile import ModelFile, plain_domain, subgraphs

# Arrays of at most so many elements may be shapes, whose values decide the size of an output.
_SHAPE_LIKE = 64
# Functions that call each other in a circle, or beyond any depth, have no size.
_DEPTH = 256


def output_shapes(
    proto: onnx.NodeProto, inputs: Mapping[str, np.ndarray], file: ModelFile
) -> list[tuple[int, ...]] | None:
    """Shapes of a standard node's outputs, without running it; None where they are not known.

    Args:
        proto: the node.
        inputs: its inputs; of large ones only the shape is used.
        file: for the versions of the operator sets.
    """
    return _inferred([proto], inputs, [name for name in proto.output if name], file)


def branch_sizes(
    graph: onnx.GraphProto, inputs: Mapping[str, np.ndarray], file: ModelFile
) -> int | None:
    """Elements that all nodes of a branch compute; None where they are not known.

    Args:
        graph: the branch.
        inputs: tensors that it takes from outside.
        file: for the versions of the operator sets.
    """
    own = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    made = [name for node in graph.node for name in node.output if name]
    shapes = _inferred(list(graph.node), {**inputs, **own}, made, file)
    return None if shapes is None else elements(shapes)


def _inferred(
    nodes: Sequence[onnx.NodeProto],
    inputs: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    file: ModelFile,
) -> list[tuple[int, ...]] | None:
    """Shapes of the wanted tensors, None unless all of them are known."""
    given, constants = [], []
    for name, array in inputs.items():
        array = np.asarray(array)
        if array.dtype.kind not in "fiub":
            return None
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        given.append(onnx.helper.make_tensor_value_info(name, kind, array.shape))
        if array.size <= _SHAPE_LIKE:
            constants.append(onnx.numpy_helper.from_array(array, name))
    outputs = [onnx.ValueInfoProto(name=name) for name in wanted]
    graph = onnx.helper.make_graph(nodes, "one", given, outputs, constants)
    standard = onnx.helper.make_opsetid("", file.opset())
    model = onnx.helper.make_model(graph, opset_imports=[standard])
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
    except Exception:  # onnx raises many types for a malformed node
        return None
    shapes = []
    for value in inferred:
        dims = value.type.tensor_type.shape.dim
        known = value.type.tensor_type.HasField("shape")
        if not known or not all(d.HasField("dim_value") for d in dims):
            return None
        shapes.append(tuple(d.dim_value for d in dims))
    return shapes


def elements(shapes: list[tuple[int, ...]]) -> int:
    """Elements of all of them."""
    return sum(prod(shape) for shape in shapes)


def function_sizes(model: onnx.ModelProto) -> dict[tuple[str, str], float]:
    """(domain, name) of every local function → nodes that one call runs, infinite for a circle."""
    functions = {(plain_domain(f.domain), f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], float] = {}

    def size(key: tuple[str, str], depth: int) -> float:
        if depth > _DEPTH:
            return inf
        if key not in sizes:
            sizes[key] = inf  # until it is known: a call of itself never ends
            stack, total = list(functions[key].node), 0.0
            while stack:
                node = stack.pop()
                called = plain_domain(node.domain), node.op_type
                total += size(called, depth + 1) if called in functions else 1
                stack.extend(inner for graph in subgraphs(node) for inner in graph.node)
            sizes[key] = total
        return sizes[key]

    return {key: size(key, 0) for key in functions}
