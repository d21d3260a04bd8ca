"""Targets, plans and exclusions of a certificate of a file, and how it is told."""

from __future__ import annotations

import io
import json

import onnx
import pytest
from qonnx.core.modelwrapper import ModelWrapper
from rich.console import Console

from brevitas_axe.errors import (
    AccumulatorTooNarrow,
    InvalidOption,
    InvalidPlan,
    InvalidTile,
    NotProven,
)
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, certify_file
from tests.proof.certificate.graphs import Graph


def two_layers() -> onnx.ModelProto:
    graph = Graph(1, 2)
    x = graph.op("MatMul", graph.quant(graph.input), graph.weight([[1], [1]], name="a.weight"))
    x = graph.quant(x, 8)
    graph.op("MatMul", x, graph.weight([[7]], name="b.weight"), name="last")
    return graph.model()


def test_a_plan_sets_targets_by_layer() -> None:
    plan = Plan({"a": LayerPrecision(accumulator=9), "b": LayerPrecision(accumulator=12)})
    certificate = certify_file(two_layers(), plan=plan)
    assert [e.target for e in certificate.entries] == [9, 12]
    assert [e.name for e in certificate.failures] == ["MatMul_2"]
    only_b = Plan({"b": LayerPrecision(tile=1)})
    assert [e.target for e in certify_file(two_layers(), 14, plan=only_b).entries] == [14, 14]


def test_a_plan_for_another_model_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="conv9; its layers are: a, b"):
        certify_file(two_layers(), plan=Plan({"conv9": LayerPrecision(accumulator=9)}))


@pytest.mark.parametrize("name", ["a", "MatMul_2", "a.weight"])
def test_exclusion_by_layer_node_or_weight(name) -> None:
    certificate = certify_file(two_layers(), 9, exclude=[name, "b"])
    assert set(certificate.excluded) == {"MatMul_2", "last"}
    assert not certificate.ok  # nothing is left to judge
    assert not certify_file(two_layers(), 9).ok
    assert certify_file(two_layers(), 12, exclude=name).ok


def test_a_verdict_on_some_dot_products_says_so() -> None:
    whole = certify_file(two_layers(), 12)
    assert not whole.unclaimed
    assert "unclaimed" in whole.to_json()
    for options in ({"include": ["a"]}, {"exclude": ["b*"]}, {"exclude": ["/^b$/"]}):
        part = whole.judging(**options)
        assert part.ok
        assert part.unclaimed == ("b",)
        assert repr(part).startswith("Certificate(the ONNX model: proven for 1 of 2 dot products, ")
        table = part.table()
        assert str(table.title) == "the ONNX model: proven for 1 of 2 dot products"
        assert str(table.caption) == "Nothing is claimed of b."
        assert Certificate.from_json(part.to_json()) == part
    failing = certify_file(two_layers(), 9).judging(["a"])
    assert str(failing.table().title) == "the ONNX model: NOT proven, 1 of 2 dot products judged"
    assert whole.judging(["type:MatMul"]) == whole
    assert not whole.judging(exclude=["type:MatMul"]).ok
    assert whole.judging(["a"]).judging(["b"]).judged == ()  # what was left out stays so


def test_patterns_of_nothing_are_refused() -> None:
    with pytest.raises(InvalidOption, match=r"include names 'c\*', which .* they are: a, b"):
        certify_file(two_layers()).judging(["c*"])
    with pytest.raises(InvalidOption, match="they are: type:MatMul"):
        certify_file(two_layers()).judging(["type:Conv"])
    with pytest.raises(InvalidPlan, match="no regular expression"):
        certify_file(two_layers()).judging(["/(/"])


def test_exclusion_of_nothing_is_refused() -> None:
    with pytest.raises(InvalidOption, match="names 'c', which is no dot product here; they are: a"):
        certify_file(two_layers(), exclude=["c"])


def test_impossible_targets_are_refused() -> None:
    with pytest.raises(AccumulatorTooNarrow):
        certify_file(two_layers(), 1)
    with pytest.raises(InvalidTile):
        certify_file(two_layers(), 16, tile_size=0)


def test_a_file_without_a_dot_product_is_not_ok() -> None:
    graph = Graph(1, 2)
    graph.quant(graph.input)
    certificate = certify_file(graph.model(), 16)
    assert certificate.entries == ()
    assert not certificate.ok
    with pytest.raises(NotProven, match="no dot product"):
        certificate.require()


def test_require_names_the_first_failure() -> None:
    with pytest.raises(NotProven, match=r"'MatMul_2' overflows: needs 10 bits, target 9 \(and 1"):
        certify_file(two_layers(), 9).require()
    certificate = certify_file(two_layers(), 12)
    assert certificate.require() is certificate


def test_json_is_strict_and_deterministic(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_layers(), path)
    certificate = certify_file(path, 12, tile_size=1, exclude=["b"])
    data = json.loads(certificate.to_json())
    assert certificate.to_json() == certify_file(str(path), 12, tile_size=1, exclude="b").to_json()
    assert data["ok"] is True
    assert data["subject"] == "model.onnx"
    assert len(data["sha256"]) == 64
    assert [e["excluded"] for e in data["entries"]] == [False, True]
    certificate.save(tmp_path / "certificate.json")
    assert (tmp_path / "certificate.json").read_text() == certificate.to_json()


def test_the_table_shows_every_dot_product_and_reads_no_markup() -> None:
    graph = Graph(1, 2)
    weight = graph.weight([[1], [1]], name="[red]x[/red].weight")
    graph.op("MatMul", graph.quant(graph.input), weight)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(certify_file(graph.model(), 9).table())
    text = console.export_text()
    assert "overflows: needs 10 bits, target 9" in text
    assert "[red]x[/red]" in text


def test_a_qonnx_wrapper_gives_the_same_proof(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(two_layers(), path)
    assert certify_file(ModelWrapper(str(path)), 12).entries == certify_file(path, 12).entries


def test_a_shared_module_is_one_layer_with_two_entries() -> None:
    graph = Graph(1, 2)
    weight = graph.weight([[1, 1], [1, 1]])
    x = graph.op("MatMul", graph.quant(graph.input), weight)
    graph.op("MatMul", graph.quant(x, 4), weight)
    certificate = certify_file(graph.model(), plan=Plan({"fc": LayerPrecision(accumulator=10)}))
    assert [(e.layer, e.width, e.target) for e in certificate.entries] == [
        ("fc", 10, 10), ("fc", 6, 10),
    ]  # fmt: skip
