"""`quantize --dry-run` and `sensitivity`: a look before the work."""

from __future__ import annotations

import json

import pytest

from brevitas_axe.cli import main
from tests.cli.refusals import refused

DATA = ("--calibration", "user.py:images")


def test_a_dry_run_tells_and_writes_nothing(at, capsys) -> None:
    files = {*at.rglob("*")}
    command = ["quantize", "user.py:build", *DATA, "--accumulator-bits", "12", "--dry-run"]
    command += ["--exclude", "5"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for part in ("nothing solved yet", "clips below", "in float: 5, left out", "FINN", "MiB"):
        assert part in said
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    (layer,) = found["layers"]
    assert layer["clipped"] == sum(p > 12 for p in layer["needed"]) > 0
    assert found["seconds"] > 0
    assert {*at.rglob("*")} == files


def test_a_dry_run_for_finn_tells_what_a_run_would_refuse(at, capsys) -> None:
    command = ["quantize", "user.py:build", *DATA, "--accumulator-bits", "16", "--input-bits", "10"]
    assert "10" in refused(capsys, *command, "--target", "finn", "--output", "prepared")
    assert main([*command, "--target", "finn", "--dry-run"]) == 0
    assert "FINN, refused: " in capsys.readouterr().out


def test_a_dry_run_takes_prepared_folders_and_no_width(at, capsys) -> None:
    assert main(["quantize", "prepared", *DATA, "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [layer["accumulator"] for layer in found["layers"]] == [None, None]
    assert [layer["weight"] for layer in found["layers"]] == [[-7, 7], [-7, 7]]


def test_the_layer_that_hurts_most_comes_first(at, capsys) -> None:
    command = ["sensitivity", "prepared", *DATA, "--weight-bits", "2", "4", "--input-bits", "4"]
    command += ["--accumulator-bits", "9", "16"]
    assert main([*command, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["layers"]
    worst = {name: max(choice["harm"] for choice in choices) for name, choices in rows.items()}
    assert all(len(choices) == 4 for choices in rows.values())
    assert main(command) == 0
    said = capsys.readouterr().out
    shown = [line.split("│")[1].strip() for line in said.splitlines() if line.startswith("│")]
    assert shown == sorted(worst, key=lambda name: -worst[name])
    heading = next(line for line in said.splitlines() if "layer" in line and "┃" in line)
    assert [cell.strip() for cell in heading.split("┃")[1:-1]] == ["layer", "W2", "W4", "P9", "P16"]
    assert "next: brevitas-axe allocate prepared" in said


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--scorer", "guess"], "'guess' is not registered"),
        (["--metric", "luck"], "metric 'luck' is unknown"),
        (["--exclude", "0", "--exclude", "5"], "no layer to look at"),
        (["--include", "nobody.*"], "applies to no layer"),
        (["--weight-bits", "0"], "weight bits"),
    ],
)
def test_bad_options_are_one_sentence(at, options, says, capsys) -> None:
    assert says in refused(capsys, "sensitivity", "prepared", *DATA, *options)
