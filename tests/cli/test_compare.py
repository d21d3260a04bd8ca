"""`compare` sets folders side by side, one row each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brevitas_axe import load
from brevitas_axe.cli import main
from tests.cli.refusals import refused


def test_rows_are_what_the_folders_hold(at, capsys) -> None:
    command = ["compare", "prepared", "solved", "--validate", "user.py:size", "--json"]
    assert main(command) == 0
    prepared, solved = json.loads(capsys.readouterr().out)
    assert (prepared["folder"], solved["folder"]) == ("prepared", "solved")
    result = load("solved")
    assert solved["layers"] == len(result.plan.layers)
    assert solved["widest accumulator"] == max(
        e.width for e in result.certificate.judged if e.width
    )
    assert solved["widest accumulator"] <= 12 < prepared["widest accumulator"]
    assert solved["finn_lut"] < prepared["finn_lut"]
    assert prepared["validation"] > 0


def test_the_table_has_a_row_each(at, capsys, tmp_path) -> None:
    report = str(tmp_path / "page.html")
    assert main(["compare", "prepared", "solved", "--cost", "bops", "--report", report]) == 0
    assert "widest accumulator of every model" in Path(report).read_text(encoding="utf-8")
    out = capsys.readouterr().out
    assert "prepared" in out
    assert "solved" in out
    assert "yes" in out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["user.py"], "user.py is no folder"),
        (["solved", "--validate", "user.py:word"], "must return a number"),
        (["solved", "--cost", "gold"], "gold"),
    ],
)
def test_bad_input_is_one_sentence(at, capsys, options, says) -> None:
    assert says in refused(capsys, "compare", *options)
