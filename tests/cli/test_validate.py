"""`--validate` of a user's function: in float, without a limit, and on the accumulators."""

from __future__ import annotations

import json

import pytest

from brevitas_axe.cli import main
from brevitas_axe.run.validated import Emulated, number
from tests.walk import nets

DATA = ("--calibration", "user.py:images")
SIZE = ("--validate", "user.py:size", "--json")


def numbers(capsys, *command: str) -> list[dict]:
    assert main([*command, *SIZE]) == 0
    return [*json.loads(capsys.readouterr().out)["validation"].values()]


def size(model) -> float:
    return float(model(nets.data(nets.cnn)).abs().mean())


def test_emulation_tells_what_overflows_do(at, capsys) -> None:
    (row,) = numbers(capsys, "emulate", "solved", "--accumulator-bits", "6")
    assert row["unquantized"] is None
    assert row["unlimited"] == number(size, Emulated("solved/model.onnx"))
    six = Emulated("solved/model.onnx", accumulator_bit_width=6)
    assert row["limited"] == number(size, six) != row["unlimited"]
    own = ("--model", "user.py:build")
    (row,) = numbers(capsys, "emulate", "solved", "--accumulator-bits", "6", *own)
    assert row["unquantized"] == pytest.approx(number(size, nets.seeded(nets.cnn)))
    (row,) = numbers(capsys, "emulate", "solved")
    assert row["limited"] == row["unlimited"]  # its plan is proven


def test_a_solve_and_the_training_after_it(at, capsys, tmp_path) -> None:
    solve = ["quantize", "user.py:build", *DATA, "--accumulator-bits", "9", "--quality", "fast"]
    (row,) = numbers(capsys, *solve, "--output", str(tmp_path / "q"))
    assert row["unquantized"] == pytest.approx(number(size, nets.seeded(nets.cnn)))
    assert len({row["unquantized"], row["unlimited"], row["limited"]}) == 3
    train = ["finetune", str(tmp_path / "q"), "--data", "user.py:labelled", "--epochs", "1"]
    before, after = numbers(capsys, *train, "--output", str(tmp_path / "t"))
    assert before == row
    assert after["unquantized"] == row["unquantized"]
    assert after["limited"] >= before["limited"]  # the best epoch by it, which may be the start
    assert main(["emulate", "solved", "--validate", "user.py:size"]) == 0
    assert "unlimited" in capsys.readouterr().out


def test_training_claims_nothing_for_what_is_left_out(at, capsys, tmp_path) -> None:
    train = ["finetune", "solved", "--data", "user.py:labelled", "--epochs", "1", "--quiet"]
    assert main([*train, "--include", "type:Conv2d", "--output", str(tmp_path / "t")]) == 0
    certificate = json.loads((tmp_path / "t" / "certificate.json").read_text())
    assert certificate["excluded"] == ["5"]
    page = (tmp_path / "t" / "report.html").read_text(encoding="utf-8")
    assert "<h2>Training</h2>" in page
    assert "epoch" in page


def test_a_plan_is_judged_before_it_is_solved(at, capsys, tmp_path) -> None:
    widths = ["--weight-bits", "3", "4", "--input-bits", "4", "--accumulator-bits", "9"]
    command = ["allocate", "user.py:build", *DATA, "--budget", "bops=1e9", *widths]
    (row,) = numbers(capsys, *command, "--output", str(tmp_path / "plan.json"))
    assert row["function"] == "user.py:size"
    assert len({row["unquantized"], row["unlimited"], row["limited"]}) == 3
