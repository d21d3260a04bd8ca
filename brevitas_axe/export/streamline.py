"""Brings a traced QONNX graph into the form in which every accumulator is a tensor of its own.

FINN, hls4ml and the certificate name an accumulator by the output of its Conv or MatMul, so no bias
may be added inside one. qonnx has the same steps (ExtractBiasFromConv, GemmToMatMul), which visit
the whole graph again after each node; here each node is visited once.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
from onnx import helper

from brevitas_axe.export.execution import run_node
from brevitas_axe.export.indexed import IndexedGraph

_CONVOLUTIONS = ("Conv", "ConvTranspose")


def streamlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without a bias inside Conv or Gemm, constants folded, nodes named by their kind."""
    graph = IndexedGraph(proto)
    known = {name for node in graph.nodes for name in (*node.input, *node.output)}
    graph.fold_constants()
    graph.separate_constants()
    _fold_biases(graph)
    _separate_biases(graph)
    graph.infer_shapes()
    for node, name in zip(graph.nodes, _unique_names(graph.nodes), strict=True):
        node.name = name
    # A name says where the constant is read, and the same model gives the same file.
    renamed: dict[str, str] = {}
    for node in graph.nodes:
        for index, name in enumerate(node.input):
            if name and name not in known and name not in renamed:
                renamed[name] = f"{node.name}_input_{index}"
    graph.rename(renamed)
    return graph.model()


def _unique_names(nodes: list[onnx.NodeProto]) -> list[str]:
    """Operator and number, as qonnx's GiveUniqueNodeNames gives them."""
    count: Counter[str] = Counter()
    names = []
    for node in nodes:
        names.append(f"{node.op_type}_{count[node.op_type]}")
        count[node.op_type] += 1
    return names


def _fold_biases(graph: IndexedGraph) -> None:
    """Writes quantized biases as the constants they are: FINN adds them to its thresholds."""
    producers = {name: node for node in graph.nodes for name in node.output}
    folded = set()
    for node in graph.nodes:
        bias = _bias(node)
        quantizer = producers.get(bias)
        if quantizer is not None and all(name in graph.constants for name in quantizer.input):
            feeds = {name: graph.array(name) for name in quantizer.input}
            graph.set_constant(bias, run_node(quantizer, feeds, graph.whole)[bias])
            folded.add(bias)
    graph.nodes = [node for node in graph.nodes if not folded & {*node.output}]


def _separate_biases(graph: IndexedGraph) -> None:
    """Adds each constant bias behind its dot product."""
    nodes = []
    for node in graph.nodes:
        if node.op_type == "Gemm":
            nodes += _split_gemm(node, graph)
        elif node.op_type in _CONVOLUTIONS and _bias(node) in graph.constants:
            nodes += _split_conv(node, graph)
        else:
            nodes.append(node)
    graph.nodes = nodes


def _bias(node: onnx.NodeProto) -> str:
    dot_product = node.op_type in (*_CONVOLUTIONS, "Gemm")
    return node.input[2] if dot_product and len(node.input) > 2 else ""


def _split_conv(node: onnx.NodeProto, graph: IndexedGraph) -> list[onnx.NodeProto]:
    bias, output = _bias(node), node.output[0]
    rank = len(graph.constants[node.input[1]].dims) if node.input[1] in graph.constants else 0
    rank = len(graph.shape(output) or ()) or rank or len(graph.shape(node.input[1]) or ())
    graph.set_constant(bias, graph.array(bias).reshape(1, -1, *(1,) * (rank - 2)))
    node.output[0] = graph.new_name()
    node.input.pop()
    return [node, helper.make_node("Add", [node.output[0], bias], [output])]


def _split_gemm(node: onnx.NodeProto, graph: IndexedGraph) -> list[onnx.NodeProto]:
    """Alpha × A × B + beta × C, one node for each step that changes anything."""
    options = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    nodes: list[onnx.NodeProto] = []

    def step(op: str, *inputs: str) -> str:
        nodes.append(helper.make_node(op, inputs, [graph.new_name()]))
        return nodes[-1].output[0]

    def times(tensor: str, factor: float) -> str:
        if factor == 1:
            return tensor
        if tensor in graph.constants:
            graph.set_constant(tensor, graph.array(tensor) * np.float32(factor))
            return tensor
        constant = graph.new_name()
        graph.set_constant(constant, np.asarray(factor, np.float32))
        return step("Mul", tensor, constant)

    left, right = (
        step("Transpose", tensor) if options.get(flag, 0) else tensor
        for tensor, flag in zip(node.input[:2], ("transA", "transB"), strict=True)
    )
    total = times(step("MatMul", left, right), options.get("alpha", 1.0))
    bias = _bias(node)
    if bias and not (bias in graph.constants and not graph.array(bias).any()):
        total = step("Add", total, times(bias, options.get("beta", 1.0)))
    nodes[-1].output[0] = node.output[0]
    return nodes
