"""The exact type of every value of a rewritten graph.

A pass in execution order finds the possible numbers of every tensor: integers from low to high
times a power of two. The types for hls4ml follow from these: none is wider than needed, none is too
narrow.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx

from brevitas_axe.accumulator import worst_case_sums
from brevitas_axe.export.hls4ml.fixed import (
    Fixed,
    Span,
    power_of_two,
    quantizing,
    scaled,
    span_of,
)
from brevitas_axe.export.hls4ml.rewrite import Dot
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.proof.graph.flow import analyse
from brevitas_axe.proof.graph.grid import Fact, is_constant, quantizer_range
from brevitas_axe.proof.graph.modelfile import Node, read
from brevitas_axe.proof.graph.quantizers import constant_values

AUTO = "auto"
_JOINS = {"Add": Span.plus, "Sub": Span.minus, "Mul": Span.times}
_MOVES = ("Flatten", "Reshape", "Transpose", "Identity", "Dropout", "Pad")


@dataclass
class Walk:
    """Spans and types that are known so far.

    Attributes:
        facts: constants by tensor.
        nodes: of the graph.
        spans: numbers by tensor; a tensor of unquantized floats has none.
        types: by node, then by hls4ml's name of the value.
    """

    facts: dict[str, Fact]
    nodes: tuple[Node, ...]
    spans: dict[str, Span] = field(default_factory=dict)
    types: dict[str, dict[str, str]] = field(default_factory=dict)

    def constant(self, tensor: str) -> np.ndarray:
        """Values of a constant of the file."""
        return np.asarray(constant_values(self.facts[tensor], tensor))

    def only_quantized(self, tensor: str) -> bool:
        """True if the tensor has one reader, a quantizer."""
        readers = [node.op for node in self.nodes if tensor in node.inputs]
        return readers in (["Quant"], ["IntQuant"])


def exact_types(
    proto: onnx.ModelProto, dots: list[Dot], certificate: Certificate
) -> dict[str, dict[str, str]]:
    """Types by node name, as hls4ml's configuration has them under `Precision`.

    Args:
        proto: the rewritten graph, channels first.
        dots: its dot products.
        certificate: of this graph.
    """
    file = read(proto)
    walk = Walk(analyse(file), file.nodes)
    by_name = {dot.name: dot for dot in dots}
    affines = {dot.affine: dot for dot in dots if dot.affine}
    entries = {entry.name: entry for entry in certificate.entries}
    for value in file.graph.input:
        walk.types[value.name] = {"result": _input_type(value.name, file.nodes, walk)}
    for node in file.nodes:
        if node.name in by_name:
            entry = entries[node.name]
            width = entry.width if by_name[node.name].affine else entry.width_with_bias
            _dot_product(node, by_name[node.name], width or entry.width or 0, walk)
        elif node.name in affines:
            _affine(node, affines[node.name], walk)
        elif not all(is_constant(walk.facts[tensor]) for tensor in node.inputs if tensor):
            _other(node, walk)
    return walk.types


def _quantizer(node: Node, walk: Walk) -> tuple[Fixed, Span] | None:
    exponent = power_of_two(walk.constant(node.inputs[1]))
    if exponent is None:
        return None
    bits = int(walk.constant(node.inputs[3]).reshape(-1)[0])
    signed, narrow = bool(node.attribute("signed", 1)), bool(node.attribute("narrow", 0))
    low, high = quantizer_range(bits, signed, narrow and signed)
    mode = node.attribute("rounding_mode", "ROUND")
    kind = quantizing(bits, exponent, signed, narrow and signed, mode)
    return kind, Span(low, high, exponent)


def _input_type(name: str, nodes: tuple[Node, ...], walk: Walk) -> str:
    """Type of a model input: that of the quantizer behind it, outside or in C++."""
    readers = [node for node in nodes if name in node.inputs]
    while len(readers) == 1 and readers[0].op in _MOVES:
        readers = [node for node in nodes if readers[0].outputs[0] in node.inputs]
    kinds = {str(found[0]) for node in readers if (found := _of_input(node, walk))}
    return kinds.pop() if len(kinds) == 1 else AUTO


def _of_input(node: Node, walk: Walk) -> tuple[Fixed, Span] | None:
    return _quantizer(node, walk) if node.op in ("Quant", "IntQuant") else None


def _dot_product(node: Node, dot: Dot, width: int, walk: Walk) -> None:
    integers = dot.integers
    accumulator = Fixed(width, dot.exponent)
    weights = Span(int(integers.weights.min()), int(integers.weights.max()), 0).joined(
        Span(-1, 0, 0)
    )
    bias = np.zeros(1) if integers.bias is None else integers.bias
    offset = Span(int(bias.min()), int(bias.max()), dot.exponent)
    low, high = worst_case_sums(integers.weights, integers.low, integers.high)
    walk.spans[node.outputs[0]] = Span(
        int((low[:, 0] + bias).min()), int((high[:, 0] + bias).max()), dot.exponent
    )
    types = {
        "weight": str(Fixed(max(weights.type.width, 2), dot.weight_exponent)),
        "bias": str(offset.type),
        "accum": str(accumulator),
        "result": str(accumulator),
    }
    if node.op == "MatMul" and bias.any():
        # The Add behind it is merged only into a layer whose result has no type yet.
        types["result"] = AUTO
    walk.types[node.name] = types


def _affine(node: Node, dot: Dot, walk: Walk) -> None:
    integers = dot.integers
    low, high = worst_case_sums(integers.weights, integers.low, integers.high)
    assert dot.gain is not None
    assert dot.offset is not None
    span = scaled(
        [int(value) for value in low[:, 0]],
        [int(value) for value in high[:, 0]],
        dot.exponent,
        dot.gain,
        dot.offset,
    )
    walk.spans[node.outputs[0]] = span
    walk.types[node.name] = {
        "scale": str(span_of(dot.gain).type),
        "bias": str(span_of(dot.offset).type),
        "result": str(span.type),
    }


def _other(node: Node, walk: Walk) -> None:
    output = node.outputs[0]
    if node.op in ("Quant", "IntQuant"):
        found = _quantizer(node, walk)
        if found is not None:
            walk.spans[output] = found[1]
            walk.types[node.name] = {"result": str(found[0])}
        return
    spans = [walk.spans[tensor] for tensor in node.inputs if tensor in walk.spans]
    if not spans:
        return
    span = spans[0]
    types: dict[str, str] = {}
    if node.op == "Relu":
        span = Span(max(span.low, 0), max(span.high, 0), span.exponent)
        # Without a type, hls4ml gives it that of the quantizer behind it, rounding included.
        types["result"] = AUTO if walk.only_quantized(output) else str(span.type)
    elif node.op == "Add" and len(spans) == 1:
        # A bias, which hls4ml merges into the product before it.
        constant = next(t for t in node.inputs if t not in walk.spans)
        span = span.plus(span_of(walk.constant(constant)))
    elif node.op in _JOINS:
        span = _JOINS[node.op](spans[0], spans[-1])
        types["result"] = str(span.type)
    elif node.op == "Concat":
        for other in spans[1:]:
            span = span.joined(other)
        types["result"] = str(span.type)
    elif node.op == "MaxPool":
        types = {"accum": str(span.type), "result": str(span.type)}
    walk.spans[output] = span
    walk.types[node.name] = types
