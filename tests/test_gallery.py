"""The gallery's table is of its rows, its models are what the rows say, and a script makes both."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

from brevitas_axe import load

GALLERY = Path(__file__).parents[1] / "gallery"
ROWS = {path.stem: json.loads(path.read_text()) for path in (GALLERY / "rows").glob("*.json")}


@pytest.fixture
def gallery(monkeypatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GALLERY))
    return importlib.import_module("whole_way")


def test_the_table_is_of_the_rows(gallery) -> None:
    text = gallery.PAGE.read_text(encoding="utf-8")
    assert gallery.with_table(text) == text
    assert all((GALLERY / f"{name}.py").is_file() for name in ROWS)


@pytest.mark.parametrize("name", ["breast_cancer", "digits", "spoken_vowels"])
def test_a_kept_model_is_what_its_row_says(name) -> None:
    found = load(GALLERY / "models" / name)
    assert found.certificate.ok
    assert {p.accumulator for p in found.plan.layers.values()} == {ROWS[name]["accumulator"]}
    assert max(entry.width for entry in found.certificate.judged) == ROWS[name]["needs"]


def test_a_script_makes_its_row_and_its_model(gallery, monkeypatch, tmp_path, capsys) -> None:
    for name in ("ROWS", "MODELS"):
        monkeypatch.setattr(gallery, name, tmp_path / name)
        (tmp_path / name).mkdir()
    finn = "--weight-bits 3 --input-bits 3 --model-input-bits 4"
    options = "--accumulator-bits 9 --quality fast"
    gallery.whole_way(str(GALLERY / "breast_cancer.py"), "MLP", options, finn=finn)
    row = json.loads((tmp_path / "ROWS" / "breast_cancer.json").read_text())
    assert row["proven"]
    assert row["finn"] == []
    assert row["accumulator"] == 9 >= row["needs"]
    assert row["command"] == "python gallery/breast_cancer.py"
    assert load(tmp_path / "MODELS" / "breast_cancer").certificate.ok
    assert "| builds it |" in capsys.readouterr().out
