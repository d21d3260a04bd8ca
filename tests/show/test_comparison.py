"""The page that sets models side by side."""

from __future__ import annotations

import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.show.comparison import write_comparison
from tests.show.markup import HOSTILE, read

ROWS = [
    {"folder": HOSTILE, "layers": 3, "proven": True, "finn_lut": 1234.0, "bops": None},
    {"folder": "wide", "layers": 3, "proven": False, "finn_lut": None, "bops": None},
]


def test_every_model_has_a_row_and_a_bar_for_each_number(tmp_path) -> None:
    write_comparison(tmp_path / "page.html", ROWS, "user.py:accuracy")
    found = read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert {HOSTILE, "wide", "proven", "not proven", "1,234", "–"} <= set(found.text)
    assert "Measure of the validation: user.py:accuracy." in found.text
    assert f"{HOSTILE}: finn_lut 1,234" in found.hovered
    assert found.described == ["finn_lut of every model"] * 2
    assert "The same in all: layers, bops." in found.text
    assert "script" not in found.tags


def test_a_verdict_on_some_layers_says_so(tmp_path) -> None:
    rows = [{**ROWS[0], "unclaimed": 0}, {**ROWS[0], "folder": "part", "unclaimed": 2}]
    write_comparison(tmp_path / "page.html", rows)
    found = read((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert {"proven", "proven in part", "nothing is claimed of 2 dot products"} <= set(found.text)
    assert not any("unclaimed" in text for text in found.described)


def test_nothing_to_compare_is_refused(tmp_path) -> None:
    with pytest.raises(InvalidOption, match="nothing to compare"):
        write_comparison(tmp_path / "page.html", [])
    assert not list(tmp_path.iterdir())
