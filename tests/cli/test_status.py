"""One meaning per exit status: 2 is unusable input, 3 a fault of this program, 130 interrupted."""

from __future__ import annotations

import pytest

from brevitas_axe.cli import certify, main
from tests.cli.refusals import refused

DATA = ("--calibration", "user.py:images")
SOLVE = ("--accumulator-bits", "12", "--quality", "fast")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["quantize", "user.py:stops", *DATA, *SOLVE], "SystemExit: 1 (user.py, line"),
        (["quantize", "user.py:build", "--calibration", "user.py:one", *SOLVE], "such as"),
        (["quantize", "user.py:failing", *DATA, *SOLVE], "no luck"),
        (["compare", "solved", "--validate", "user.py:divides"], "division by zero (user.py, line"),
    ],
)
def test_a_broken_function_of_the_user_is_unusable_input(at, command, says, capsys) -> None:
    assert says in refused(capsys, *command)


def test_a_file_that_ends_the_program_is_unusable_input(at, tmp_path, capsys) -> None:
    (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)\n")
    command = ["prepare", f"{tmp_path / 'ends.py'}:build", *DATA]
    assert "SystemExit: 0 (ends.py, line 2)" in refused(capsys, *command)


def test_a_fault_of_ours_is_neither_an_answer_nor_the_user_s(at, monkeypatch, capsys) -> None:
    def breaks(*_: object) -> None:
        raise IndexError("a fault")

    monkeypatch.setattr(certify.folders, "result_of", breaks)
    assert main(["certify", "solved"]) == 3
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.splitlines()[-1].startswith("error: this is a fault of brevitas_axe")


def test_an_interrupted_run_says_how_it_goes_on(at, monkeypatch, capsys) -> None:
    def interrupts(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(certify.folders, "model_from", interrupts)
    command = ["quantize", "user.py:build", *DATA, *SOLVE, "--output"]
    output = str(at.parent / "never")
    assert main([*command, output, "--state", "layers"]) == 130
    assert capsys.readouterr().err == "error: interrupted; the same command goes on from layers.\n"
    assert main([*command, output]) == 130
    assert capsys.readouterr().err == "error: interrupted.\n"
