"""The HTML page: complete, self-contained, escaped."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import brevitas_axe
from brevitas_axe.errors import InvalidOption
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.show import open_folder, plots, write_folder
from brevitas_axe.show.page import page
from tests.show.markup import HOSTILE, read
from tests.show.samples import ARM, FLOAT, PLAN, certificate, entry


def test_page_is_well_formed_and_fetches_nothing() -> None:
    summary = {"title": "Run", "accumulator": 12, "arms": [FLOAT, ARM], "seconds": 3.2}
    checker = read(page(summary, certificate(entry("conv"), entry("fc")), PLAN))
    assert "script" not in checker.tags
    assert {"table", "svg"} <= checker.tags
    assert checker.addresses  # to parts of the page, as `read` checks
    assert not any(tag.startswith(("rdf:", "cc:", "dc:")) for tag in checker.tags)
    text = " ".join(checker.text)
    assert "97.5 %" in text
    assert "98.4 %" in text
    assert "UINT4" in text


def test_every_text_is_escaped() -> None:
    summary = {
        "title": HOSTILE,
        "description": HOSTILE,
        "arms": [{**ARM, "name": HOSTILE, "note": HOSTILE}],
        "layers": [{"name": HOSTILE, "error_rounded": 1.0, "error": 0.5, "seconds": 0.1}],
        "environment": {HOSTILE: HOSTILE},
    }
    bad = entry(HOSTILE, proven=False, op=HOSTILE, weight_type=HOSTILE, reason=HOSTILE)
    checker = read(page(summary, certificate(bad), Plan({HOSTILE: LayerPrecision()})))
    assert "script" not in checker.tags
    assert HOSTILE in " ".join(checker.text)


def test_page_says_what_the_verdict_leaves_out() -> None:
    parts = certificate(entry("conv"), entry("fc", target=8), excluded=("fc",))
    text = " ".join(" ".join(read(page({"title": "Run"}, parts)).text).split())
    assert "proven in part overflow certificate of 1 of 2 dot products" in text
    assert "The verdict does not cover the whole model: nothing is claimed of fc ." in text
    whole = page({"title": "Run"}, certificate(entry("conv")))
    assert "in part" not in whole
    assert "whole model" not in whole


def test_page_says_when_nothing_is_proven() -> None:
    unknown = entry(
        "gru", proven=False, reason="no input quantizer", width=None, minimum=None, maximum=None,
    )  # fmt: skip
    html = page({"title": "Run"}, certificate(unknown, entry("fc", target=8)))
    assert html.count(">not proven<") == 3  # the verdict, and both layers
    assert html.count("no input quantizer") == 2  # on top, and in its row
    assert "no input quantizer" in html
    assert html.index("Why it is not proven") < html.index("needs 12 bits, target 8")
    assert html.index("needs 12 bits, target 8") < html.index("<h2>Overflow certificate")
    assert "needs 12 bits, target 8" in html


def test_outer_widths_are_shown_where_there_are_tiles() -> None:
    tiled = entry("a", tile_size=8, width=12, outer_width=15)
    with_tiles = read(page({"title": "Run"}, certificate(tiled, entry("b")))).text
    assert {"15 bits", "widest sum of tiles needed", "outer width", "tile"} <= set(with_tiles)
    without = read(page({"title": "Run"}, certificate(entry("b")))).text
    assert not {"outer width", "tile", "with bias"} & set(without)
    assert {"target", "margin"} <= set(without)


def test_the_graph_of_a_proven_file_can_be_looked_at_elsewhere() -> None:
    proof = replace(certificate(entry("a")), sha256="0" * 64, subject=f"folder/{HOSTILE}")
    found = read(page({"title": "Run"}, proof))
    assert found.links == ["https://netron.app/"]
    assert "script" not in found.tags
    assert not read(page({"title": "Run"}, replace(proof, sha256=None))).links


def test_excluded_layers_are_shown_without_a_claim() -> None:
    html = page({"title": "Run"}, certificate(entry("a"), entry("head"), excluded=("head",)))
    assert ">excluded<" in html
    assert html.count(">proven<") == 1  # layer a
    assert html.count(">proven in part<") == 1  # the verdict


def test_costs_are_shown_with_and_without_the_budget() -> None:
    row = {"accumulator": 12, "lut": 400, "unlimited_accumulator": 16, "unlimited_lut": 500}
    rows = [{"name": HOSTILE, **row}, {"name": "fc", **row}]
    text = read(page({"title": "Run", "resources": rows})).text
    for value in (HOSTILE, "LUT without budget", "400", "500", "800", "1000"):
        assert value in text


def test_every_layer_tells_its_name_and_value_under_the_mouse() -> None:
    row = {"accumulator": 12, "lut": 400, "unlimited_accumulator": 16, "unlimited_lut": 500}
    layers = [entry("conv"), entry("fc", width=13)]
    summary = {"title": "Run", "arms": [ARM], "resources": [{"name": "fc", **row}]}
    found = read(page(summary, certificate(*layers))).hovered
    for said in (
        "ours  W4A4: 97.5 %",
        "conv: needs 12 bits, target 12",
        "fc: needs 13 bits, target 12",
        "conv: sums from -1800 to 2000, 97.7 % of 12 bits",
        "fc: with the accumulator budget 400",
        "fc: without 500",
    ):
        assert found.count(said) == 2  # for screens, and for phones


def test_text_of_drawings_can_be_read_on_a_phone_and_on_a_screen() -> None:
    sizes = read(page({"title": "Run", "arms": [ARM]}, certificate(entry("conv")))).sizes
    # A card is 24 pixels wider than its drawing, and the page has 20 on either side.
    phone, screen = (390 - 66) / (72 * plots.NARROW), (821 - 70) / (72 * plots.WIDE)
    assert min(sizes) * min(phone, screen) >= 10.9


def test_what_was_measured_and_the_origin_stand_on_top(tmp_path) -> None:
    row = {"function": HOSTILE, "unquantized": 0.5, "unlimited": None, "limited": 0.25}
    summary = {"title": "Run", "validation": {HOSTILE: row}}
    write_folder(tmp_path, summary, certificate(entry("c")), PLAN)
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    text = read(html).text
    assert {HOSTILE, "0.5", "–", "0.25", f"Measure: {HOSTILE}."} <= set(text)
    assert html.index("How good it is") < html.index("<h2>Overflow certificate")
    made = json.loads((tmp_path / "summary.json").read_text())["origin"]
    assert made["brevitas_axe"] == brevitas_axe.__version__
    assert any(made["date"] in line and f"torch {made['torch']}" in line for line in text)


def test_an_arm_of_another_kind_is_drawn_too() -> None:
    html = page({"title": "Run", "arms": [{**ARM, "kind": "theirs"}]})
    assert "svg" in read(html).tags


def test_title_alone_is_enough() -> None:
    assert "<table" not in page({"title": "Run"})


def test_page_is_reproducible() -> None:
    summary = {"title": "Run", "arms": [FLOAT, ARM]}
    assert page(summary, certificate(entry("conv"))) == page(summary, certificate(entry("conv")))


def test_folder_holds_every_file(tmp_path) -> None:
    folder = open_folder(tmp_path / "a" / "b")
    files = write_folder(folder, {"title": "Run", "arms": [ARM]}, certificate(entry("c")), PLAN)
    assert sorted(file.name for file in files) == sorted(p.name for p in folder.iterdir())
    assert Plan.load(folder / "plan.json") == PLAN
    assert json.loads((folder / "summary.json").read_text())["arms"] == [ARM]


def test_a_folder_is_not_begun_before_all_is_made(tmp_path) -> None:
    with pytest.raises(KeyError):
        write_folder(tmp_path, {"title": "Run", "arms": [{}]}, certificate(entry("c")), PLAN)
    assert not list(tmp_path.iterdir())


def test_a_summary_is_strict_json(tmp_path) -> None:
    numbers = {"perplexity": float("inf"), "loss": float("nan"), "seed": 3}
    summary = {"title": "Run", "environment": numbers}
    write_folder(tmp_path, summary, certificate(entry("c")), PLAN)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    text = (tmp_path / "summary.json").read_text()
    found = json.loads(text, parse_constant=refuse)
    assert found["environment"] == {"perplexity": None, "loss": None, "seed": 3}


def test_folder_that_cannot_be_made_is_refused_by_name(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidOption, match="--output"):
        open_folder(tmp_path / "file" / "folder")
