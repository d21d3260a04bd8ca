"""Attacks that hide a dot product: written without MatMul, it must be an entry all the same."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import QONNX, Graph

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


HIDDEN = {
    "mul, reduce sum": lambda g, x: g.op("ReduceSum", weighted(g, x), axes(g, 1)),
    "mul, reduce sum of all": lambda g, x: g.op("ReduceSum", weighted(g, x)),
    "mul, reduce mean": lambda g, x: g.op("ReduceMean", weighted(g, x), axes=[1]),
    "mul, reduce mean from the end": lambda g, x: g.op("ReduceMean", weighted(g, x), axes=[-1]),
    "mul, reduce l1": lambda g, x: g.op("ReduceL1", weighted(g, x), axes=[1]),
    "mul, reduce l2": lambda g, x: g.op("ReduceL2", weighted(g, x), axes=[1]),
    "mul, reduce sum square": lambda g, x: g.op("ReduceSumSquare", weighted(g, x), axes=[1]),
    "reduce sum square": lambda g, x: g.op("ReduceSumSquare", x, axes=[1]),
    "mul, cumulated": lambda g, x: g.op("CumSum", weighted(g, x), g.constant(np.array(1))),
    "mul, average pool": lambda g, x: g.op(
        "AveragePool", image(g, weighted(g, x)), kernel_shape=[2, 2]
    ),
    "mul, global average pool": lambda g, x: g.op("GlobalAveragePool", image(g, weighted(g, x))),
    "mul, lp pool": lambda g, x: g.op("LpPool", image(g, weighted(g, x)), kernel_shape=[2, 2]),
    "div, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Div", x, g.constant(1 / FACTORS)), axes(g, 1)
    ),
    "prelu, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("PRelu", g.op("Neg", x), g.constant(FACTORS)), axes(g, 1)
    ),
    "batch norm, reduce sum": lambda g, x: g.op(
        "ReduceSum",
        g.op("BatchNormalization", x, *(g.constant(FACTORS[0]) for _ in range(4))),
        axes(g, 1),
    ),
    "batch norm, reduce sum over the batch and channels": lambda g, x: g.op(
        "ReduceSum",
        g.op("BatchNormalization", x, *(g.constant(FACTORS[0]) for _ in range(4))),
        axes(g, 0, -1),
    ),
    "mul, relu, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Relu", weighted(g, x)), axes(g, 1)
    ),
    "mul, add, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Add", weighted(g, x), g.constant([0.5])), axes(g, 1)
    ),
    "mul, transpose, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Transpose", weighted(g, x)), axes(g, 0)
    ),
    "mul, reshape, reduce sum": lambda g, x: g.op(
        "ReduceSum", image(g, weighted(g, x)), axes(g, 2, 3)
    ),
    "mul, dropout, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Dropout", weighted(g, x)), axes(g, 1)
    ),
    "mul, mul, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Mul", weighted(g, x), g.constant(np.float32(2))), axes(g, 1)
    ),
    "activations, reduce sum": lambda g, x: g.op("ReduceSum", squared(g, x), axes(g, 1)),
    "activations by float, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Mul", g.op("Softmax", x, axis=1), x), axes(g, 1)
    ),
    "square, reduce mean": lambda g, x: g.op(
        "ReduceMean", g.op("Pow", x, g.constant([2.0])), axes=[1]
    ),
    "split, add, add": lambda g, x: chain(g, g.op("Split", weighted(g, x), outputs=4, axis=1)),
    "split, mul, add": lambda g, x: chain(g, scaled_pieces(g, x)),
    "split, mul, sub": lambda g, x: chain(g, scaled_pieces(g, x), "Sub"),
    "split, mul, sum": lambda g, x: g.op("Sum", *scaled_pieces(g, x)),
    "split, mul, mean": lambda g, x: g.op("Mean", *scaled_pieces(g, x)),
    "split, mul, concat, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Concat", *scaled_pieces(g, x), axis=1), axes(g, 1)
    ),
    "split, mul, stack, global average": lambda g, x: g.op(
        "ReduceMean", g.op("Concat", *scaled_pieces(g, x), axis=0), axes=[0]
    ),
    "gather, mul, add": lambda g, x: g.op(
        "Add",
        g.op("Mul", gathered(g, x, 0), g.constant(np.float32(3))),
        g.op("Mul", gathered(g, x, 1), g.constant(np.float32(4))),
    ),
    "mul, gather, add": lambda g, x: _added_gathers(g, weighted(g, x)),
    "slice, mul, add": lambda g, x: g.op(
        "Add",
        g.op("Mul", g.op("Slice", x, axes(g, 0), axes(g, 2), axes(g, 1)), g.constant([3.0])),
        g.op("Slice", x, axes(g, 2), axes(g, 4), axes(g, 1)),
    ),
    "mul, add of its transpose": lambda g, x: _with_transpose(g, weighted(g, x)),
    "mul, add of it padded": lambda g, x: _with_shift(g, weighted(g, x)),
    "einsum": lambda g, x: g.op("Einsum", x, g.constant(FACTORS), equation="ij,ij->i"),
    "interpolation": lambda g, x: g.op(
        "Resize", image(g, x), "", g.constant(np.float32([1, 1, 2, 2])), mode="linear"
    ),
    "scatter": lambda g, x: g.op(
        "ScatterElements", x, g.constant(np.zeros((1, 4), np.int64)), weighted(g, x), axis=1
    ),
    "grid sample": lambda g, x: g.op("GridSample", image(g, x), image(g, x)),
    "bit shift": lambda g, x: g.op("BitShift", x, x, direction="LEFT"),
    "det": lambda g, x: g.op("Det", x),
    "a later version's operator": lambda g, x: g.op("Attention", x, x, x),
    "unknown attribute": lambda g, x: g.op("Relu", x, secret=1),
    "contrib": lambda g, x: g.op("FusedMatMul", x, x, domain="com.microsoft"),
    # A quantizer's step is a factor, and steps that differ are weights.
    "quant of several steps, reduce sum": lambda g, x: summed(g, stepped(g, x)),
    "bipolar quant of several steps, reduce sum": lambda g, x: summed(
        g, g.op("BipolarQuant", x, g.constant(FACTORS), domain=QONNX)
    ),
    "bipolar quant whose step is an activation": lambda g, x: summed(
        g, g.op("BipolarQuant", x, g.op("Relu", x), domain=QONNX)
    ),
    "dequantize by several steps, reduce sum": lambda g, x: summed(g, dequantized(g, x)),
    "quant of pieces by steps of their own, add": lambda g, x: chain(g, quantized_pieces(g, x)),
    "quant of pieces by steps of their own, concat, reduce sum": lambda g, x: summed(
        g, g.op("Concat", *quantized_pieces(g, x), axis=1)
    ),
    # Steps are chosen where elements stand.
    "a choice between x and 3 x, reduce sum": lambda g, x: summed(
        g, g.op("Where", mask(g), x, g.op("Mul", x, g.constant([3.0])))
    ),
    "the larger of 3 x and a masked x, reduce sum": lambda g, x: summed(
        g, g.op("Max", g.op("Mul", x, g.constant([3.0])), g.op("Where", mask(g), x, g.op("Neg", x)))
    ),
    # e^(log x + log w) is x · w.
    "log, add, exp, reduce sum": lambda g, x: summed(
        g, g.op("Exp", g.op("Add", g.op("Log", x), g.constant(np.log(FACTORS))))
    ),
    "log, sub, exp, reduce mean": lambda g, x: g.op(
        "ReduceMean", g.op("Exp", g.op("Sub", g.op("Log", x), g.constant(FACTORS))), axes=[1]
    ),
    "log, add, reduce log sum exp": lambda g, x: g.op(
        "ReduceLogSumExp", g.op("Add", g.op("Log", x), g.constant(FACTORS)), axes=[1]
    ),
    # A gate that heeds its place more than its input is a weight.
    "a gate of constants, reduce sum": lambda g, x: summed(
        g, g.op("Mul", x, g.op("Sigmoid", g.op("Add", x, g.constant(FACTORS))))
    ),
    "a gate that takes the larger constant": lambda g, x: summed(
        g, g.op("Mul", x, g.op("Tanh", g.op("Max", x, g.constant(FACTORS))))
    ),
    "a gate that chooses the constant": lambda g, x: summed(
        g, g.op("Mul", x, g.op("Sigmoid", g.op("Where", mask(g), g.constant(FACTORS), x)))
    ),
    # Numbers that an operator makes of its inputs are not new.
    "one hot with weighted values": lambda g, x: summed(g, g.op(
        "OneHot", axes(g, 0, 1, 2), g.constant(np.array(4)),
        g.op("Reshape", g.op("Slice", weighted(g, x), axes(g, 0), axes(g, 2), axes(g, 1)),
             axes(g, 2)),
    )),
    "a range whose step is an activation": lambda g, x: g.op("ReduceSum", g.op(
        "Range", g.constant(np.float32(0)), g.constant(np.float32(9)),
        g.op("ReduceMax", x, keepdims=0),
    )),
    # Statistics are sums.
    "batch norm in training": lambda g, x: g.op(
        "BatchNormalization", image(g, weighted(g, x)),
        *(g.constant(np.ones(1, np.float32)) for _ in range(4)), training_mode=1, outputs=3,
    )[1],
    "layer norm that gives its mean away": lambda g, x: _statistics(g, weighted(g, x)),
    "average pool of qonnx": lambda g, x: g.op(
        "QuantAvgPool2d", image(g, weighted(g, x)), domain=QONNX,
        kernel=2, stride=1, ibits=8, obits=8, signed=0,
    ),
    "average pool of qonnx, channels last": lambda g, x: g.op(
        "QuantAvgPool2d", g.op("Reshape", weighted(g, x), axes(g, 1, 2, 2, 1)), domain=QONNX,
        kernel=2, stride=1, ibits=8, obits=8, signed=0, data_layout="NHWC",
    ),
    # Further ways to sum that are no MatMul.
    **{
        f"operator {op}": lambda g, x, op=op: g.op(op, x, g.constant(FACTORS))
        for op in (
            *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "LSTM", "GRU", "RNN"),
            *("DeformConv", "Attention", "ScatterND", "ScatterElements", "Scatter", "GridSample"),
            *("Col2Im", "DFT", "STFT", "MelWeightMatrix", "NegativeLogLikelihoodLoss", "RoiAlign"),
            *("SoftmaxCrossEntropyLoss", "MaxRoiPool", "AffineGrid", "TfIdfVectorizer", "Scan"),
            *("RotaryEmbedding", "TensorScatter", "StringConcat", "SequenceMap", "Loop"),
        )
    },
}  # fmt: skip


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


def _statistics(graph: Graph, x: str) -> str:
    graph.opset = 17
    gain = graph.constant(np.ones(4, np.float32))
    return graph.op("LayerNormalization", x, gain, outputs=2)[1]


def _added_gathers(graph: Graph, x: str) -> str:
    return graph.op("Add", gathered(graph, x, 0), gathered(graph, x, 1))


def _with_transpose(graph: Graph, x: str) -> str:
    return graph.op("Add", x, graph.op("Transpose", x))


def _with_shift(graph: Graph, x: str) -> str:
    return graph.op("Add", x, graph.op("Pad", x, axes(graph, 0, 1, 0, -1)))


@pytest.mark.parametrize("name", HIDDEN)
def test_a_hidden_dot_product_is_named(name) -> None:
    entries = entries_beside_a_proven_one(HIDDEN[name])
    assert entries
    assert not any(entry.proven for entry in entries)


def subgraph(op: str, x: str, graph: Graph) -> onnx.GraphProto:
    value = helper.make_tensor_value_info("inner", TensorProto.FLOAT, None)
    factors = graph.constant(FACTORS)
    ones = graph.constant(np.array([1]))
    nodes = {
        "mul": [helper.make_node("Mul", [x, factors], ["inner"])],
        "both": [
            helper.make_node("Mul", [x, factors], ["m"]),
            helper.make_node("ReduceSum", ["m", ones], ["inner"]),
        ],
        "same": [helper.make_node("Identity", [x], ["inner"])],
    }
    return helper.make_graph(nodes[op], "branch", [], [value])


def branched(graph: Graph, x: str, op: str) -> str:
    condition = graph.constant(np.array(True))
    return graph.op(
        "If", condition, then_branch=subgraph(op, x, graph), else_branch=subgraph("same", x, graph)
    )


def test_products_and_sums_inside_a_branch() -> None:
    assert entries_beside_a_proven_one(lambda g, x: branched(g, x, "both"))


def test_products_inside_a_branch_and_the_sum_behind_it() -> None:
    assert entries_beside_a_proven_one(
        lambda g, x: g.op("ReduceSum", branched(g, x, "mul"), axes(g, 1))
    )


def called(graph: Graph, x: str, nodes: list[onnx.NodeProto]) -> str:
    opsets = [helper.make_opsetid("", 13)]
    graph.functions = [helper.make_function("local", "f", ["a", "w"], ["b"], nodes, opsets)]
    return graph.op("f", x, graph.constant(FACTORS), domain="local")


def test_products_and_sums_inside_a_function() -> None:
    nodes = [
        helper.make_node("Mul", ["a", "w"], ["m"]),
        helper.make_node("ReduceSum", ["m"], ["b"]),
    ]
    assert entries_beside_a_proven_one(lambda g, x: called(g, x, nodes))


def test_pieces_multiplied_and_added_inside_a_function() -> None:
    nodes = [
        helper.make_node("Mul", ["a", "w"], ["m"]),
        helper.make_node("Split", ["m"], ["p", "q"], axis=1),
        helper.make_node("Add", ["p", "q"], ["b"]),
    ]
    assert entries_beside_a_proven_one(lambda g, x: called(g, x, nodes))


@pytest.mark.parametrize(
    "inner",
    [
        [("BatchNormalization", ["a", "w", "w", "w", "w"], ["b", "mean", "variance"])],
        [("Exp", ["a"], ["e"]), ("Split", ["e"], ["p", "q"]), ("Add", ["p", "q"], ["b"])],
        [("Range", ["a", "a", "w"], ["b"])],
    ],
)
def test_other_sums_inside_a_function(inner) -> None:
    nodes = [helper.make_node(*node) for node in inner]
    assert entries_beside_a_proven_one(lambda g, x: summed(g, called(g, x, nodes)))


def test_a_quantizer_of_several_steps_inside_a_function() -> None:
    nodes = [helper.make_node("Quant", ["a", "w", "w", "w"], ["b"], domain=QONNX, signed=1)]
    assert entries_beside_a_proven_one(lambda g, x: summed(g, called(g, x, nodes)))


def test_an_operator_set_inside_a_function_that_nobody_knows() -> None:
    def build(graph: Graph, x: str) -> str:
        result = called(graph, x, [helper.make_node("Relu", ["a"], ["b"])])
        graph.functions[0].opset_import[0].version = 99
        return result

    assert entries_beside_a_proven_one(build)


def test_products_inside_a_function_and_the_sum_behind_it() -> None:
    nodes = [helper.make_node("Mul", ["a", "w"], ["b"])]
    assert entries_beside_a_proven_one(
        lambda g, x: g.op("ReduceMean", called(g, x, nodes), axes=[1])
    )


def test_a_body_that_is_repeated() -> None:
    def loop(graph: Graph, x: str) -> str:
        values = [
            helper.make_tensor_value_info(n, k, [])
            for n, k in (("i", TensorProto.INT64), ("c", TensorProto.BOOL))
        ]
        state = helper.make_tensor_value_info("s", TensorProto.FLOAT, None)
        out = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
        flag = helper.make_tensor_value_info("d", TensorProto.BOOL, [])
        body = helper.make_graph(
            [
                helper.make_node("Identity", ["c"], ["d"]),
                helper.make_node("Add", ["s", "s"], ["t"]),
            ],
            "body", [*values, state], [flag, out],
        )  # fmt: skip
        count, go = graph.constant(np.array(3)), graph.constant(np.array(True))
        return graph.op("Loop", count, go, x, body=body)

    assert entries_beside_a_proven_one(loop)


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
