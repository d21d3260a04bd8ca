"""Attacks that hide a dot product: written without MatMul, it must be an entry all the same."""

from __future__ import annotations

import numpy as np
import pytest

from tests.proof.attacks.pieces import (
    FACTORS,
    axes,
    chain,
    dequantized,
    doubled,
    entries_beside_a_proven_one,
    gathered,
    image,
    mask,
    pieces,
    quantized_pieces,
    requantized,
    scaled_pieces,
    squared,
    stepped,
    summed,
    weighted,
)
from tests.proof.certificate.graphs import QONNX, Graph

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
    # A quantizer behind products rounds them, and leaves them products.
    "mul, quant, reduce sum": lambda g, x: summed(g, g.quant(weighted(g, x), 16, 1, 1.0)),
    "mul, quant, transpose, relu, reduce sum": lambda g, x: g.op(
        "ReduceSum", g.op("Relu", g.op("Transpose", g.quant(weighted(g, x), 16, 1, 1.0))),
        axes(g, 0),
    ),
    "mul, quantize, dequantize, reduce sum": lambda g, x: summed(g, requantized(g, weighted(g, x))),
    "split, mul, quant, add": lambda g, x: chain(
        g, [g.quant(piece, 16, 1, 1.0) for piece in scaled_pieces(g, x)]
    ),
    "split, mul, quantize, dequantize, add": lambda g, x: chain(
        g, [requantized(g, piece) for piece in scaled_pieces(g, x)]
    ),
    # What is taken several times has a weight.
    "a piece doubled, add": lambda g, x: doubled(g, pieces(g, x)),
    "elements gathered unevenly, reduce sum": lambda g, x: summed(
        g, g.op("Gather", x, axes(g, 0, 0, 0, 1, 1, 2), axis=1)
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
