"""What looks like an attack and is none: it is not named, or it is proven."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.proof.certificate import certify_file
from tests.proof.attacks.pieces import (
    FACTORS,
    axes,
    chain,
    entries_beside_a_proven_one,
    image,
    pieces,
    stepped,
    summed,
)
from tests.proof.certificate.graphs import QONNX, Graph

HARMLESS = {
    "pooling": lambda g, x: g.op("ReduceMean", x, axes=[1]),
    "pooling of a scaled tensor": lambda g, x: g.op(
        "ReduceSum", g.op("Mul", x, g.constant(np.float32(3))), axes(g, 1)
    ),
    "pooling by hand": lambda g, x: chain(g, pieces(g, x)),
    "image pooling": lambda g, x: g.op("GlobalAveragePool", image(g, x)),
    "batch norm, then image pooling": lambda g, x: g.op(
        "GlobalAveragePool",
        g.op("BatchNormalization", image(g, x), *(g.constant(np.float32([2])) for _ in range(4))),
    ),
    "a factor per row, summed along the row": lambda g, x: g.op(
        "ReduceSum",
        g.op("Mul", g.op("Reshape", x, axes(g, 2, 2)), g.constant(np.float32([[3], [4]]))),
        axes(g, 1),
    ),
    "silu, then pooling": lambda g, x: g.op(
        "ReduceMean", g.op("Mul", x, g.op("Sigmoid", x)), axes=[1]
    ),
    "a shortcut": lambda g, x: g.op("Add", x, g.op("Mul", x, g.constant(FACTORS))),
    "softmax": lambda g, x: g.op("Softmax", x, axis=1),
    "layer norm": lambda g, x: _layer_norm(g, x),
    "nearest neighbour": lambda g, x: g.op(
        "Resize", image(g, x), "", g.constant(np.float32([1, 1, 2, 2]))
    ),
    "squeeze and excite, then pooling": lambda g, x: _gate(g, x),
    "leaky relu by choice, then pooling": lambda g, x: g.op(
        "ReduceMean",
        g.op("Where", g.op("Greater", x, g.constant([0.0])), x, g.op("Mul", x, g.constant([0.1]))),
        axes=[1],
    ),
    "leaky relu by maximum, then pooling": lambda g, x: g.op(
        "ReduceMean", g.op("Max", x, g.op("Mul", x, g.constant([0.1]))), axes=[1]
    ),
    "softmax by hand behind a mask": lambda g, x: _softmax(g, g.op("Add", x, g.constant(FACTORS))),
    "steps per channel, pooled inside channels": lambda g, x: g.op(
        "GlobalAveragePool",
        stepped(g, g.op("Reshape", x, axes(g, 1, 2, 2, 1)), np.float32([3, 4]).reshape(1, 2, 1, 1)),
    ),
    "two quantizers, joined along channels, pooled inside them": lambda g, x: g.op(
        "GlobalAveragePool",
        g.op("Concat", g.quant(image(g, x), 8, 1, 3), g.quant(image(g, x), 8, 1, 4), axis=1),
    ),
    "a shortcut doubled": lambda g, x: g.op("Add", x, g.op("Add", x, x)),
    "elements gathered evenly, reduce sum": lambda g, x: summed(
        g, g.op("Gather", x, axes(g, 3, 1, 1, 3), axis=1)
    ),
    "pieces in one quantizer, add": lambda g, x: chain(
        g, [g.quant(piece, 4, 1, 2.0) for piece in pieces(g, x)]
    ),
    "a shortcut of two quantizers": lambda g, x: g.op(
        "Add", g.quant(x, 8, 1, 3.0), g.quant(g.op("Relu", x), 8, 1, 4.0)
    ),
}


def _layer_norm(graph: Graph, x: str) -> str:
    centred = graph.op("Sub", x, graph.op("ReduceMean", x, axes=[1]))
    square = graph.op("Pow", centred, graph.constant([2.0]))
    variance = graph.op("ReduceMean", square, axes=[1])
    root = graph.op("Sqrt", graph.op("Add", variance, graph.constant([1e-5])))
    return graph.op("Mul", graph.op("Div", centred, root), graph.constant(FACTORS))


def _softmax(graph: Graph, x: str) -> str:
    exponentials = graph.op("Exp", x)
    return graph.op("Div", exponentials, graph.op("ReduceSum", exponentials, axes(graph, 1)))


def _gate(graph: Graph, x: str) -> str:
    picture = image(graph, x)
    gate = graph.op("Sigmoid", graph.op("GlobalAveragePool", picture))
    return graph.op("GlobalAveragePool", graph.op("Mul", picture, gate))


@pytest.mark.parametrize("name", HARMLESS)
def test_what_is_no_dot_product_is_not_named(name) -> None:
    assert entries_beside_a_proven_one(HARMLESS[name]) == []


@pytest.mark.parametrize("version", [99, 1000])
def test_an_operator_set_newer_than_onnx(version) -> None:
    graph = Graph(1, 1)
    graph.op("MatMul", graph.op("Identity", graph.quant(graph.input)), graph.weight([[1]]))
    model = graph.model()
    model.opset_import[0].version = version
    assert not certify_file(model, 60).ok


def test_finn_hardware_is_one_line() -> None:
    graph = Graph(1, 1)
    x = graph.input
    for _ in range(5):
        x = graph.op("MVAU_hls", x, domain="finn.custom_op.fpgadataflow.hls")
    (entry,) = certify_file(graph.model()).entries
    assert "5 layers that are already FINN hardware" in entry.reason


def test_a_count_of_agreeing_bits() -> None:
    graph = Graph(1, 3)
    graph.types["x"] = "BINARY"
    weight = graph.constant(np.float32([[1, 0], [1, 1], [0, 1]]), "w", "BINARY")
    graph.op("XnorPopcountMatMul", "x", weight, domain=QONNX)
    (entry,) = certify_file(graph.model()).entries
    assert (entry.minimum, entry.maximum, entry.inputs) == (0, 3, 3)


@pytest.mark.parametrize("domain", ["", "qonnx", "finn", "onnx.brevitas"])
def test_quantizers_under_their_old_names(domain) -> None:
    graph = Graph(1, 2)
    graph.op("MatMul", graph.quant(graph.input), graph.weight([[3], [-2]]))
    for node in graph.nodes:
        if node.op_type == "Quant":
            node.domain = domain
    (entry,) = certify_file(graph.model()).entries
    assert (entry.minimum, entry.maximum) == (-510, 765)


@pytest.mark.parametrize("kind", [np.int8, np.int32, np.int64])
def test_whole_scales_as_integers(kind) -> None:
    graph = Graph(1, 1)
    parameters = [graph.constant(np.array(v, kind)) for v in (2, 0, 4)]
    weight = graph.op("Quant", graph.constant(np.float32([[6]])), *parameters, domain=QONNX)
    graph.op("MatMul", graph.quant(graph.input), weight)
    (entry,) = certify_file(graph.model()).entries
    assert entry.maximum == 3 * 255


def test_a_channels_last_convolution() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-7, 8, (4, 2, 2, 3))
    graph = Graph(1, 5, 5, 3)
    x, weight = graph.quant(graph.input), graph.weight(weights)
    more = {"kernel_shape": [2, 2], "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1]}
    graph.op("Conv", x, weight, domain="qonnx.custom_op.channels_last", group=1, **more)
    (entry,) = certify_file(graph.model()).entries
    rows = weights.reshape(4, -1)
    assert entry.maximum == 255 * np.maximum(rows, 0).sum(1).max()
    assert entry.inputs == 12
