"""Rules for nodes of FINN's own dialect: MultiThreshold and XnorPopcountMatMul."""

from __future__ import annotations

import numpy as np

from brevitas_axe.export.finn.quantizers import check_sign, check_source
from brevitas_axe.export.finn.signal import Accumulation, Graph, Lost, Signal, Value
from brevitas_axe.proof.graph.modelfile import Node


def multi_threshold(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """MultiThreshold: what a quantizer becomes in FINN, compared exactly, so without ties."""
    name, source = graph.name(node), graph.demand(inputs[0])
    levels = graph.constant(node.inputs[1])
    scale, bias = node.attribute("out_scale", 1.0), node.attribute("out_bias", 0.0)
    if levels is None or levels.ndim != 2:
        problem = f"the thresholds of '{name}' are not in the file, and FINN must know them"
        return Lost(graph.report(name, "thresholds", problem, "export the model again"))
    one = np.ones((), np.int64)
    if node.attribute("out_dtype", "") == "BIPOLAR":
        check_sign(node, source, np.ones(()), graph)
        size = np.ones(())
        return Signal(size, np.zeros(()), -one, one, one, size, quantizer=name, bipolar=True)
    if scale != 1 or bias != int(bias):
        problem = f"the thresholds of '{name}' have the out_scale {scale:g} and out_bias {bias:g}"
        way_out = "write both as a Mul and an Add behind it"
        graph.report(name, "thresholds", f"{problem}, and FINN builds only integers", way_out)
    if isinstance(source, Signal):
        check_source(name, source, graph)
    low, high = (np.asarray(v, np.int64) for v in (bias, bias + levels.shape[1]))
    size = np.asarray(np.maximum(np.abs(low), np.abs(high)), np.float64)
    return Signal(np.ones(()), np.zeros(()), low, high, one, size, quantizer=name)


def popcount(node: Node, inputs: list[Value], graph: Graph) -> Value:
    """XnorPopcountMatMul: how many bits of both operands agree."""
    layer = graph.layer(node)
    source, weights = graph.demand(inputs[0]), graph.constant(node.inputs[1])
    if isinstance(source, Lost):
        return source
    if weights is None or weights.ndim != 2 or len(inputs) != 1:
        problem = f"'{layer}' multiplies two activations, which FINN does not build here"
        return Lost(graph.report(layer, "product", problem, "move it out of FINN's part"))
    zero, one, size = np.zeros((), np.int64), np.ones((), np.int64), np.ones(())
    high = np.asarray(weights.shape[0], np.int64)
    dot = Accumulation(layer, size, np.zeros((), bool))
    return Signal(size, np.zeros(()), zero, high, one, size * weights.shape[0], dot=dot)
