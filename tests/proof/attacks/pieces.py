"""Parts of graphs that attacks are made of, and what a certificate says of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import Graph

FACTORS = np.float32([[3, 4, 5, 6]])


def entries_beside_a_proven_one(build: Callable[[Graph, str], object]) -> list:
    """What a certificate names beside an honest MatMul."""
    graph = Graph(1, 4)
    x = graph.quant(graph.input, scale=1.0)
    graph.op("MatMul", x, graph.weight([[1]] * 4), name="honest")
    build(graph, x)
    outputs = [name for node in graph.nodes for name in node.output if name.endswith("out")]
    functions = getattr(graph, "functions", [])
    model = graph.model(outputs[-1], functions=functions)
    model.opset_import[0].version = getattr(graph, "opset", 13)
    certificate = certify_file(model, 60)
    (honest,) = (e for e in certificate.entries if e.name == "honest")
    assert honest.proven
    return [e for e in certificate.entries if e.name != "honest"]


def axes(graph: Graph, *values: int) -> str:
    return graph.constant(np.array(values))


def weighted(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, graph.constant(FACTORS))


def pieces(graph: Graph, x: str) -> list[str]:
    return graph.op("Split", x, outputs=4, axis=1)


def chain(graph: Graph, parts: list[str], op: str = "Add") -> str:
    total = parts[0]
    for part in parts[1:]:
        total = graph.op(op, total, part)
    return total


def squared(graph: Graph, x: str) -> str:
    return graph.op("Mul", x, x)


def image(graph: Graph, x: str) -> str:
    return graph.op("Reshape", x, axes(graph, 1, 1, 2, 2))


def scaled_pieces(graph: Graph, x: str) -> list[str]:
    factors = [graph.constant(np.float32(f)) for f in (3, 4, 5, 6)]
    return [graph.op("Mul", p, f) for p, f in zip(pieces(graph, x), factors, strict=True)]


def gathered(graph: Graph, x: str, index: int) -> str:
    return graph.op("Gather", x, axes(graph, index), axis=1)


def summed(graph: Graph, x: str) -> str:
    return graph.op("ReduceSum", x, axes(graph, 1))


def mask(graph: Graph) -> str:
    return graph.constant(np.array([[True, False, True, False]]))


def stepped(graph: Graph, x: str, factors=FACTORS) -> str:
    return graph.quant(x, 8, 1, factors)


def dequantized(graph: Graph, x: str) -> str:
    zero = graph.constant(np.int8(0))
    stored = graph.op("QuantizeLinear", x, graph.constant(np.float32(1)), zero)
    zeros = graph.constant(np.zeros(4, np.int8))
    return graph.op("DequantizeLinear", stored, graph.constant(FACTORS[0]), zeros, axis=1)


def quantized_pieces(graph: Graph, x: str) -> list[str]:
    return [graph.quant(p, 8, 1, s) for p, s in zip(pieces(graph, x), (3, 4, 5, 6), strict=True)]


def requantized(graph: Graph, x: str) -> str:
    """To 16 bits of step 1 and back."""
    scale, zero = graph.constant(np.float32(1)), graph.constant(np.uint16(0))
    return graph.op("DequantizeLinear", graph.op("QuantizeLinear", x, scale, zero), scale, zero)


def doubled(graph: Graph, parts: list[str]) -> str:
    """Twice the first piece, and the second."""
    return graph.op("Add", graph.op("Add", parts[0], parts[0]), parts[1])
