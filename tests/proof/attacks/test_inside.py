"""Attacks that hide a dot product inside a branch, a loop or a function of the file."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.proof.attacks.pieces import FACTORS, axes, entries_beside_a_proven_one, summed
from tests.proof.certificate.graphs import QONNX, Graph


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
