"""Rules for functions between layers that FINN computes in float32."""

from __future__ import annotations

import numpy as np

from brevitas_axe.export.finn import joins
from brevitas_axe.export.finn.signal import Graph, Host, Lost, Value
from brevitas_axe.proof.graph.modelfile import Node

# Units that take the floating-point blocks of Versal devices; elsewhere FINN raises.
VERSAL = ("Gelu", "Sigmoid", "Tanh")


def float_quant(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Floating-point numbers of few bits, as weights or as activations."""
    name = graph.name(node)
    problem = f"the quantizer '{name}' gives floating-point numbers, which FINN cannot build"
    way_out = "plan bits of integers there, or export with target='qonnx'"
    return Lost(graph.report(name, "floating_point", problem, way_out))


def versal(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """GELU, sigmoid (SiLU too) and tanh: PWPolyF, a piecewise polynomial."""
    return _unit(node, inputs, graph, ", for Versal devices only")


def softmax(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """Softmax over the last axis."""
    if node.attribute("axis", -1) not in (-1, len(graph.shape(node.inputs[0])) - 1):
        problem = f"the softmax '{graph.name(node)}' is over an axis that is not the last"
        return joins.lost(node, graph, f"{problem}, which FINN leaves to the host", "transpose it")
    return _unit(node, inputs, graph)


def layer_norm(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """LayerNorm over the last axis, without gain and bias."""
    name = graph.name(node)
    given = [graph.constant(tensor) for tensor in node.inputs[1:3]]
    rank = len(graph.shape(node.inputs[0]))
    if not given or given[0] is None or np.any(given[0] != 1):
        problem = f"the layer norm '{name}' has a gain, which FINN leaves to the host"
        way_out = "extract it (qonnx's ExtractNormScaleBias), or build without elementwise_affine"
        return joins.lost(node, graph, problem, way_out)
    if node.attribute("axis", -1) not in (-1, rank - 1):
        problem = f"the layer norm '{name}' is over several axes, which FINN leaves to the host"
        return joins.lost(node, graph, problem, "normalize the last axis alone")
    if len(given) > 1 and (given[1] is None or np.any(given[1] != 0)):
        problem = f"the layer norm '{name}' has a bias, which FINN silently drops"
        way_out = "extract it (qonnx's ExtractNormScaleBias), or build without elementwise_affine"
        graph.report(name, "layer_norm_bias", problem, way_out, "wrong")
    return _unit(node, inputs, graph)


def _unit(node: Node, inputs: list[Value], graph: Graph, where: str = "") -> Value:
    """A float unit: what leaves it is float, to be quantized before the next layer."""
    value = inputs[0]
    if len(inputs) != 1 or isinstance(value, Lost):
        return joins.unknown(node, inputs, graph)
    if isinstance(value, Host):
        return Host()  # of another scale
    return joins.float_unit(node, graph, "let the host compute it if it can", where)
