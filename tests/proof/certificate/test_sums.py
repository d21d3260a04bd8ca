"""What the certificate says of an Add that joins the results of dot products."""

from __future__ import annotations

import json
import warnings

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.export import export_qonnx
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from brevitas_axe.model.quantizers import Int8DynamicActPerTensorFloat
from brevitas_axe.proof.certificate import certify, certify_file
from brevitas_axe.show.page import page
from tests.proof.certificate.graphs import Graph

A = np.array([[1, -2], [3, 4], [-7, 0]])  # [K, N]
B = np.array([[5, 5], [-1, 2]])


def two_products(scales=(0.5, 0.5), inputs=(0.25, 0.25), bias=None) -> Graph:
    """The sum of x[:3] A and x[3:] B, each input an unsigned byte."""
    graph = Graph(1, 5)
    low, high = (graph.constant(np.arange(*r, dtype=np.int64)) for r in ((0, 3), (3, 5)))
    parts = []
    for name, columns, q, scale, step in zip(
        ("one", "two"), (low, high), (A, B), scales, inputs, strict=True
    ):
        x = graph.quant(graph.op("Gather", graph.input, columns, axis=1), 8, scale=step)
        parts.append(
            graph.op("MatMul", x, graph.weight(q, scale, name=f"{name}.weight"), name=name)
        )
    if bias is not None:
        parts[0] = graph.op("Add", parts[0], graph.constant(np.float32(bias)))
    graph.op("Add", *parts, name="join")
    return graph


def largest(*matrices: np.ndarray) -> tuple[int, int]:
    both = np.concatenate(matrices)
    return (
        int(np.minimum(both * 255, 0).sum(0).min()),
        int(np.maximum(both * 255, 0).sum(0).max()),
    )


def test_equal_steps_are_added_as_integers() -> None:
    certificate = certify_file(two_products().model(), 16)
    assert [entry.layer for entry in certificate.entries] == ["one", "two"]
    (entry,) = certificate.sums
    assert (entry.name, entry.op, entry.proven, entry.target) == ("join", "Add", True, None)
    assert (entry.minimum, entry.maximum) == largest(A, B)
    limit = max(-entry.minimum, entry.maximum)
    assert 2 ** (entry.width - 2) - 1 < limit <= 2 ** (entry.width - 1) - 1
    assert certificate.assumptions == ()
    assert json.loads(certificate.to_json())["sums"][0]["name"] == "join"
    console = Console(width=200)
    with console.capture() as shown:
        console.print(certificate.table())
    assert "join" in shown.get()
    assert "join" in page({"title": "t"}, certificate)


def test_the_bias_goes_through_the_sum() -> None:
    bias = np.array([100, -300])
    graph = two_products(bias=bias * 0.125)
    (entry,) = certify_file(graph.model()).sums
    low, high = largest(A, B)
    assert (entry.minimum, entry.maximum) == (low, high)
    ends = np.concatenate([A, B]) * 255
    with_bias = max(
        -(np.minimum(ends, 0).sum(0) + np.minimum(bias, 0)).min(),
        (np.maximum(ends, 0).sum(0) + np.maximum(bias, 0)).max(),
    )
    assert 2 ** (entry.width_with_bias - 2) - 1 < with_bias <= 2 ** (entry.width_with_bias - 1) - 1


@pytest.mark.parametrize(
    "different",
    [
        {"scales": (0.5, 0.25)},
        {"inputs": (0.25, np.nextafter(np.float32(0.25), np.float32(1)))},
        {"scales": (0.5, np.array([0.5, 0.25]))},
    ],
    ids=str,
)
def test_other_steps_are_an_assumption(different: dict) -> None:
    certificate = certify_file(two_products(**different).model(), 16)
    said = "the results of 'one' and 'two' are scaled before they are added"
    assert certificate.assumptions == (said,)
    assert certificate.sums == ()
    assert certificate.ok
    assert json.loads(certificate.to_json())["assumptions"] == [said]
    assert f"Assumed: {said}." in str(certificate.table().caption)
    assert "are scaled before they are added" in page({"title": "t"}, certificate)


def test_equal_products_of_unequal_scales_are_equal_steps() -> None:
    certificate = certify_file(two_products(scales=(0.5, 0.25), inputs=(0.25, 0.5)).model())
    assert len(certificate.sums) == 1


def test_other_additions_are_left_alone() -> None:
    graph = Graph(1, 2)
    x = graph.quant(graph.input)
    product = graph.op("MatMul", x, graph.weight(B), name="fc")
    graph.op("Add", graph.op("Relu", product), graph.op("MatMul", x, graph.weight(B, name="w")))
    certificate = certify_file(graph.model())
    assert certificate.sums == certificate.assumptions == ()


def test_an_unproven_summand_has_an_entry_and_the_sum_none() -> None:
    graph = Graph(1, 2)
    x = graph.quant(graph.input)
    floats = graph.op("MatMul", graph.input, graph.weight(B), name="float")
    graph.op("Add", graph.op("MatMul", x, graph.weight(B, name="w"), name="fc"), floats)
    certificate = certify_file(graph.model())
    assert not certificate.ok
    assert certificate.sums == certificate.assumptions == ()


@given(
    st.lists(st.lists(st.integers(-7, 7), min_size=2, max_size=2), min_size=1, max_size=4),
    st.integers(0, 2**32 - 1),
)
@settings(max_examples=25, deadline=None)
def test_no_inputs_pass_the_sum(rows: list, seed: int) -> None:
    graph = Graph(1, len(rows))
    q = np.array(rows)
    x = graph.quant(graph.input, 4)
    parts = [
        graph.op("MatMul", x, graph.weight(w, name=f"w{i}"), name=f"fc{i}")
        for i, w in enumerate((q, -q[::-1], q))
    ]
    graph.op("Add", graph.op("Add", *parts[:2], name="first"), parts[2], name="second")
    entries = {entry.name: entry for entry in certify_file(graph.model()).sums}
    draw = np.random.default_rng(seed)
    for name, matrices in (("first", (q, -q[::-1])), ("second", (q, -q[::-1], q))):
        inputs = draw.integers(0, 16, (50, len(rows)))
        sums = sum(inputs @ matrix for matrix in matrices)
        assert entries[name].minimum <= sums.min()
        assert sums.max() <= entries[name].maximum
        assert entries[name].inputs == len(matrices)


class Halves(nn.Module):
    """Two layers whose results are added."""

    def __init__(self, act=Int8ActPerTensorFloat, output=None, between=None) -> None:
        super().__init__()
        kinds = {"weight_quant": Int8WeightPerChannelFloat, "weight_bit_width": 4}
        self.one, self.two = (
            qnn.QuantLinear(3, 4, bias=bias, input_quant=act, output_quant=output, **kinds)
            for bias in (True, False)
        )
        self.between = between or nn.Identity()

    def forward(self, x):
        return self.between(self.one(x)) + self.two(x)


def calibrated(model: nn.Module, same: bool = False) -> nn.Module:
    if same:
        model.two.weight.data = model.one.weight.data.flip(1)
    model.train()
    with torch.no_grad():
        model(torch.randn(32, 3))
    return model.eval()


@pytest.mark.parametrize("same", [False, True])
def test_model_and_file_say_the_same(tmp_path, same: bool) -> None:
    torch.manual_seed(0)
    model, x = calibrated(Halves(), same), torch.randn(1, 3)
    live = certify(nn.Sequential(model), args=x)
    with warnings.catch_warnings(action="ignore"):
        export_qonnx(nn.Sequential(model), args=x, export_path=str(tmp_path / "m.onnx"))
    file = certify_file(tmp_path / "m.onnx", fixed_initializers=True)
    said = "nobody replaces the"
    assert live.assumptions == tuple(a for a in file.assumptions if said not in a)
    assert bool(live.assumptions) != same
    assert len(live.sums) == len(file.sums) == same
    for mine, other in zip(live.sums, file.sums, strict=True):
        assert (mine.name, mine.op) == ("0.add", "Add")
        for field in ("minimum", "maximum", "width", "width_with_bias", "inputs"):
            assert getattr(mine, field) == getattr(other, field), field
        assert mine.width_with_bias is not None


@pytest.mark.parametrize(
    "model",
    [
        Halves(output=Int8ActPerTensorFloat),
        Halves(between=nn.ReLU()),
        Halves(between=nn.ReLU(inplace=True)),
    ],
    ids=["output quantizer", "relu", "relu in place"],
)
def test_what_is_no_result_is_not_spoken_of(model) -> None:
    certificate = certify(calibrated(model, same=True), args=torch.randn(1, 3))
    assert certificate.sums == certificate.assumptions == ()


def test_scales_that_are_found_at_run_time_are_never_equal() -> None:
    certificate = certify(
        calibrated(Halves(Int8DynamicActPerTensorFloat), same=True), args=torch.randn(1, 3)
    )
    assert certificate.sums == ()
    assert certificate.assumptions == (
        "the results of 'one' and 'two' are scaled before they are added",
    )
