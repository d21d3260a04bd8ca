"""What commands print: the next step, JSON or nothing, and tables that fit the window."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table
from rich.text import Text

from brevitas_axe import load
from brevitas_axe.cli import main
from brevitas_axe.cli.screen import command, fitted
from tests.walk import nets

DATA = "--calibration user.py:images"
QUICK = {
    "certify": "certify solved",
    "emulate": "emulate solved --inputs {x} --output {out}/y.npy",
    "check": "check solved",
    "export": "export solved {out}/model.onnx",
    "cost": "cost solved",
    "compare": "compare prepared solved",
    "methods": "methods",
    "mend": "mend solved --output {out}/mended",
}
LONGER = {
    "prepare": f"prepare user.py:build {DATA} --output {{out}}/prepared",
    "allocate": f"allocate prepared {DATA} --budget bops=150% --weight-bits 3 4 --input-bits 4 8 "
    "--output {out}/plan.json",
    "quantize": f"quantize prepared {DATA} --accumulator-bits 12 --quality fast --output {{out}}/q",
    "finetune": "finetune solved --data user.py:labelled --epochs 1 --output {out}/tuned",
}


@pytest.fixture
def run(at, tmp_path, capsys):
    """Runs a command in the solved place; returns what it prints."""
    np.save(tmp_path / "x.npy", nets.data(nets.cnn, 2).numpy())

    def done(text: str, *more: str) -> str:
        words = [word.format(x=tmp_path / "x.npy", out=tmp_path) for word in text.split()]
        assert main([*words, *more]) == 0
        captured = capsys.readouterr()
        assert not captured.err
        return captured.out

    return done


@pytest.mark.parametrize("name", QUICK)
def test_a_command_ends_with_the_next_step_or_is_silent(name, run) -> None:
    assert run(QUICK[name]).splitlines()[-1].startswith("next: ")
    assert run(QUICK[name], "--quiet") == ""
    assert json.loads(run(QUICK[name], "--json"))


@pytest.mark.parametrize("name", LONGER)
def test_a_long_command_ends_with_the_next_step_and_shows_no_progress_in_a_pipe(name, run) -> None:
    assert run(LONGER[name]).splitlines()[-1].startswith("next: brevitas-axe ")


@pytest.mark.parametrize("name", ["allocate", "quantize"])
def test_json_of_a_long_command_names_its_files(name, run) -> None:
    assert json.loads(run(LONGER[name], "--json"))["files"]


def test_shares_are_told_with_what_they_are_shares_of(run) -> None:
    said = run(LONGER["allocate"] + " --reference W3A4")
    assert "bops: at most" in said
    assert "which is 150% of the" in said
    assert "that W3A4 takes" in said


@pytest.mark.parametrize("name", ["certify", "cost", "compare", "methods"])
@pytest.mark.parametrize("columns", [60, 80])
def test_tables_fit_the_window(name, columns, run, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = run(QUICK[name]).splitlines()
    rows = [line for line in lines if line[:1] in tuple("┏┃┡│├└")]
    assert rows
    assert max(map(len, rows)) <= columns


def wide() -> Table:
    table = Table(title="model: NOT proven")
    for heading in ("layer", "alpha", "beta", "gamma", "verdict"):
        table.add_column(heading, justify="left" if heading in ("layer", "verdict") else "right")
    table.add_row("one", "1" * 12, "2" * 12, "3" * 12, "fits in 9 bits")
    table.add_row("two", "4" * 12, "5" * 12, "6" * 12, "overflows: needs 12 bits, target 9")
    return table


def test_pieces_of_a_wide_table_lose_nothing_and_answer_first() -> None:
    pieces = fitted(wide(), 60)
    headings = [[str(column.header) for column in piece.columns] for piece in pieces]
    assert headings == [["layer", "verdict", "alpha"], ["layer", "beta", "gamma"]]
    assert str(pieces[0].title) == "model: NOT proven"
    assert pieces[1].title is None
    (whole,) = fitted(wide(), 132)
    assert [str(column.header) for column in whole.columns][-1] == "verdict"


def test_verdicts_have_colours_where_there_are_any() -> None:
    def shown(terminal: bool) -> str:
        stream = io.StringIO()
        for piece in fitted(wide(), 132):
            colours = "standard" if terminal else "auto"
            console = Console(file=stream, force_terminal=terminal, color_system=colours)
            console.print(piece, width=132)
        return stream.getvalue()

    coloured = shown(True)
    assert "\x1b[32mfits in 9 bits" in coloured
    assert "\x1b[31moverflows" in coloured
    assert "\x1b[1;31mNOT proven" in coloured
    assert "\x1b" not in shown(False)


def test_names_are_no_markup_and_commands_can_be_typed() -> None:
    table = Table("layer")
    table.add_row(Text("[red]x"))
    assert [str(cell) for cell in fitted(table, 60)[0].columns[0].cells] == ["[red]x"]
    assert command("certify", "my models", None) == "brevitas-axe certify 'my models'"


def test_a_resumed_run_says_so(run, tmp_path) -> None:
    solve = f"quantize prepared {DATA} --accumulator-bits 12 --quality fast --output {{out}}/q"
    kept = ["--state", str(tmp_path / "layers")]
    assert "solved already" not in run(solve, *kept)
    again = run(solve, *kept)
    assert "2 of 2 layers were solved already" in again
    assert f"{tmp_path / 'q' / 'model'} is replaced at the end" in again
    train = "finetune solved --data user.py:labelled --epochs 1 --output {out}/t --state {out}/s"
    assert "goes on" not in run(train)
    assert "goes on from the last whole epoch" in run(train)


@pytest.mark.parametrize(
    ("options", "solved"),
    [
        (["--include", "type:Conv2d"], {"0"}),
        (["--exclude", "/^0$/"], {"5"}),
        (["--rule", "type:Linear:weight=3,input=6"], {"0", "5"}),
    ],
)
def test_layers_and_widths_are_picked_by_pattern_and_type(options, solved, run, tmp_path) -> None:
    solve = f"quantize user.py:build {DATA} --accumulator-bits 14 --quality fast --output {{out}}/q"
    run(solve, *options)
    plan = load(tmp_path / "q").plan
    assert {name for name, p in plan.layers.items() if p.accumulator == 14} == solved
    if "--rule" in options:
        assert [(p.weight, p.input) for p in plan.layers.values()] == [(4, 8), (3, 6)]


def test_an_allocation_leaves_out_by_type(run, tmp_path) -> None:
    run(LONGER["allocate"], "--exclude", "type:Linear")
    assert set(json.loads((tmp_path / "plan.json").read_text())["layers"]) == {"0"}
