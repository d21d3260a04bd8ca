"""Nodes of an indexed graph by their tensors, and new nodes and constants."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from brevitas_axe.export.indexed import IndexedGraph


def options(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes of a node by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}


def producers(graph: IndexedGraph) -> dict[str, onnx.NodeProto]:
    """Tensor → the node that gives it."""
    return {name: node for node in graph.nodes for name in node.output}


def readers_of(graph: IndexedGraph) -> dict[str, list[onnx.NodeProto]]:
    """Tensor → the nodes that read it."""
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.nodes:
        for name in dict.fromkeys(node.input):
            found.setdefault(name, []).append(node)
    return found


def sizes(graph: IndexedGraph, name: str) -> tuple[int, ...]:
    """Shape of a tensor, empty where it is not known."""
    return graph.shape(name) or ()


def constant(graph: IndexedGraph, values: np.ndarray) -> str:
    """Adds a constant; returns its name."""
    name = graph.new_name()
    graph.set_constant(name, values)
    return name


def added(
    graph: IndexedGraph,
    op: str,
    inputs: Sequence[str],
    shape: Sequence[int] | None,
    **attributes: Any,
) -> str:
    """Adds a node that gives a new float tensor of a shape; returns the tensor's name."""
    output = graph.new_name()
    node = helper.make_node(op, inputs, [output], name=f"{op}_{output}", **attributes)
    graph.nodes.append(node)
    graph.set_type(output, TensorProto.FLOAT, shape)
    return output
