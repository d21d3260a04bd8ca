"""The graph of a proven file: boxes, places and verdicts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from brevitas_axe.proof.certificate import Certificate, certify_file
from brevitas_axe.proof.graph.modelfile import read as read_file
from brevitas_axe.show import write_folder
from brevitas_axe.show.graph import boxes_of, graph_view
from tests.proof.certificate.graphs import Graph
from tests.show.markup import HOSTILE, read
from tests.show.samples import PLAN


def residual(name: str = "second") -> onnx.ModelProto:
    """One product whose result goes on by two ways, of which one has two products more."""
    graph = Graph(1, 2)
    square = [[1, 2], [3, -4]]
    x = graph.op("MatMul", graph.quant(graph.input), graph.weight(square, name="a"), name="first")
    x = graph.quant(graph.op("Relu", x))
    y = graph.op("MatMul", x, graph.weight(square, name="b"), name=name)
    y = graph.op("MatMul", graph.quant(y), graph.weight(square, name="c"), name="third")
    graph.op("Relu", graph.op("Add", graph.quant(y), x, name="join"))
    return graph.model()


@pytest.fixture
def proven(tmp_path) -> tuple[Path, Certificate]:
    file = tmp_path / "model.onnx"
    onnx.save(residual(), file)
    return file, certify_file(file, 10)


def test_boxes_are_products_and_joins_with_what_follows_them(proven) -> None:
    file, certificate = proven
    boxes = boxes_of(read_file(file).nodes, ["x"], certificate)
    assert [(box.name, box.operations) for box in boxes] == [
        ("x", ["input", "Quant"]),
        ("first", ["MatMul", "Relu", "Quant"]),
        ("second", ["MatMul", "Quant"]),
        ("third", ["MatMul", "Quant"]),
        ("join", ["Add", "Relu"]),
    ]
    assert [box.sources for box in boxes] == [[], [0], [1], [2], [1, 3]]


def test_lines_go_around_boxes(proven) -> None:
    view = graph_view(*proven)
    # Boxes stand 198 apart in one row; the way past two of them goes below.
    assert [view.count(f'class="box" x="{14 + 198 * rank}" y="14"') for rank in range(5)] == [1] * 5
    assert "C395,53 395,113 410,113H776C791,113 791,53 806,53" in view
    assert view.count('class="line"') == 5


def test_colours_are_verdicts_and_the_mouse_is_told_more(proven) -> None:
    file, certificate = proven
    view = graph_view(file, certificate)
    assert view.count('<g class="good">') + view.count('<g class="bad">') >= 3
    checker = read(view)
    assert "script" not in checker.tags
    assert checker.addresses == []
    assert any("weights INT4" in text for text in checker.hovered)
    broken = replace(certificate.entries[0], proven=False, width=None, reason="no grid")
    changed = replace(certificate, entries=(broken, *certificate.entries[1:]))
    assert "not proven: no grid" in " ".join(read(graph_view(file, changed)).hovered)


def test_what_nothing_is_claimed_of_has_no_colour(proven) -> None:
    file, certificate = proven
    view, whole = (graph_view(file, c) for c in (certificate.judging(["second"]), certificate))
    assert view.count('class="plain"') == whole.count('class="plain"') + 2
    assert view.count("nothing is claimed") == 2
    assert view.count('class="box"') == whole.count('class="box"')


def test_names_are_escaped(tmp_path) -> None:
    file = tmp_path / "model.onnx"
    onnx.save(residual(HOSTILE), file)
    checker = read(graph_view(file, certify_file(file)))
    assert "script" not in checker.tags
    assert any(HOSTILE in text for text in checker.hovered)


def test_another_file_and_a_large_graph_are_not_drawn(proven, monkeypatch, tmp_path) -> None:
    file, certificate = proven
    assert graph_view(file, replace(certificate, sha256="0" * 64)) == ""
    assert graph_view(tmp_path / "nowhere.onnx", certificate) == ""
    monkeypatch.setattr("brevitas_axe.show.graph._MOST_BOXES", 4)
    assert graph_view(file, certificate) == ""


def test_the_page_of_a_folder_has_the_graph_of_its_file(proven) -> None:
    file, certificate = proven
    write_folder(file.parent, {"title": "Run"}, certificate, PLAN)
    assert "The graph of model.onnx" in (file.parent / "report.html").read_text(encoding="utf-8")
