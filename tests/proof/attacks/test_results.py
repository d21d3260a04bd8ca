"""Attacks on what is said of results: their bias, their sums, and files that ask for much."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from benchmarks.proof_bombs import data_of, used
from brevitas_axe.proof.certificate import certify_file
from tests.proof.certificate.graphs import Graph


def two_products(first: str = "", **more) -> tuple[Graph, str, str]:
    """Results of two Gemms of 2 x 2 weights, on one grid."""
    graph = Graph(2, 2)
    x, weight = graph.quant(graph.input), graph.weight([[1, 0], [0, 7]])
    left = graph.op("Gemm", x, weight, name="left", **more)
    return graph, left, graph.op("Gemm", x, weight, name="right")


def said(graph: Graph, **more) -> list[str]:
    """Names of the sums that a certificate bounds."""
    return [entry.name for entry in certify_file(graph.model(**more), 60).sums]


def test_a_sum_of_results_is_bounded() -> None:
    graph, left, right = two_products()
    graph.op("Add", left, right, name="sum")
    assert said(graph) == ["sum"]


@pytest.mark.parametrize("op", ["Sum", "Sub"])
def test_other_sums_of_results_are_bounded_too(op) -> None:
    graph, left, right = two_products()
    graph.op(op, left, right, name="sum")
    first, second = certify_file(graph.model(), 60).entries
    (entry,) = certify_file(graph.model(), 60).sums
    lows, highs = (first.minimum, second.minimum), (first.maximum, second.maximum)
    assert entry.name == "sum"
    if op == "Sum":
        assert (entry.minimum, entry.maximum) == (sum(lows), sum(highs))
    else:
        assert (entry.minimum, entry.maximum) == (lows[0] - highs[1], highs[0] - lows[1])


@pytest.mark.parametrize("alpha", [2.0, -1.0, 0.0])
def test_results_that_were_scaled_are_of_another_step(alpha) -> None:
    """Alpha multiplies what one of the two accumulators holds."""
    graph, left, right = two_products(alpha=alpha)
    graph.op("Add", left, right, name="sum")
    assert said(graph) == []


def test_rows_on_different_axes_meet_each_other() -> None:
    """Weights on the left have their rows on the other axis, so that every pair is added."""
    graph = Graph(2, 2)
    x, weight = graph.quant(graph.input), graph.weight([[1, 0], [0, 7]])
    left, right = graph.op("MatMul", x, weight), graph.op("MatMul", weight, x)
    graph.op("Add", left, right, name="sum")
    assert said(graph) == []


def test_an_add_that_the_file_defines_is_no_sum() -> None:
    graph, left, right = two_products()
    graph.op("Add", left, right, name="sum")
    opsets = [helper.make_opsetid("", 13)]
    node = helper.make_node("Mul", ["a", "b"], ["c"])
    function = helper.make_function("", "Add", ["a", "b"], ["c"], [node], opsets)
    assert said(graph, functions=[function]) == []


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv"])
def test_a_bias_on_another_axis_meets_every_row(op) -> None:
    """Its values belong to samples or places, though there are as many of them as rows."""
    bias = np.float32([[0], [9000]])
    if op == "Conv":
        graph = Graph(1, 1, 2, 2)
        weight = graph.weight(np.reshape([7, 1], (2, 1, 1, 1)))
        result = graph.op("Conv", graph.quant(graph.input), weight, name="fc")
        graph.op("Add", result, graph.constant(bias.reshape(2)))
    else:
        graph = Graph(2, 1)
        x, weight = graph.quant(graph.input), graph.weight([[7, 1]])
        if op == "Gemm":
            graph.op("Gemm", x, weight, graph.constant(bias), name="fc")
        else:
            graph.op("Add", graph.op("MatMul", x, weight, name="fc"), graph.constant(bias))
    (entry,) = certify_file(graph.model(), 60).entries
    assert entry.proven
    assert entry.width_with_bias is None


@pytest.mark.parametrize(
    "name", ["doubling_sums", "sum_of_many", "functions", "endless_loop", "branch_that_grows"]
)
def test_a_small_file_that_asks_for_much_gets_an_answer(name) -> None:
    data = data_of(name)
    for use in ("certify", "emulate"):
        assert used(data, use) in ("answer", "InvalidModelFile")


def test_long_products_of_activations_share_one_budget() -> None:
    graph = Graph(1, 2**24)
    x = graph.quant(graph.input)
    turned = graph.op("Transpose", x)
    for _ in range(40):
        graph.op("MatMul", x, turned)
    reasons = [entry.reason for entry in certify_file(graph.model()).entries]
    assert any("too large" in reason for reason in reasons)
