"""`prepare` writes a folder that the next commands take, or says what cannot be built."""

from __future__ import annotations

import pytest

from brevitas_axe import load
from brevitas_axe.cli import main
from brevitas_axe.export import check_finn
from tests.cli.refusals import refused


def test_the_folder_has_a_model_that_finn_builds(at, capsys, tmp_path) -> None:
    assert (at / "prepared" / "plan.json").is_file()
    result = load("prepared")
    assert {p.weight for p in result.plan.layers.values()} == {4}
    assert {p.input for p in result.plan.layers.values()} == {4, 8}
    file = tmp_path / "model.onnx"
    assert main(["export", "prepared", str(file)]) == 0
    assert not [f for f in check_finn(file) if f.severity != "note"]


def test_it_prepares_for_hls4ml_too(at, capsys, tmp_path) -> None:
    place = tmp_path / "fixed"
    command = ["prepare", "user.py:build", "--calibration", "user.py:images"]
    assert main([*command, "--target", "hls4ml", "--output", str(place)]) == 0
    assert "next: brevitas-axe quantize" in capsys.readouterr().out
    assert main(["export", str(place), str(tmp_path / "hls"), "--target", "hls4ml"]) == 0
    assert (tmp_path / "hls" / "hls4ml.yml").is_file()


def test_what_was_prepared_can_be_allocated(at, capsys, tmp_path) -> None:
    widths = ["--weight-bits", "3", "4", "--input-bits", "4"]
    command = ["allocate", "prepared", "--calibration", "user.py:images", "--budget", "bops=1e9"]
    assert main([*command, *widths, "--output", str(tmp_path / "plan.json")]) == 0
    assert (tmp_path / "plan.json").is_file()


def test_ranges_that_no_one_trained_are_fitted_unless_others_are_asked_for(at, tmp_path) -> None:
    command = ["quantize", "prepared", "--calibration", "user.py:images", "--quality", "fast"]
    asked = tmp_path / "recipe.yaml"
    asked.write_text("format: brevitas_axe.recipe.v1\nranges: max\n")
    for options, ranges in (((), "mse"), (("--recipe", str(asked)), "max")):
        place = str(tmp_path / ranges)
        assert main([*command, "--accumulator-bits", "12", "--output", place, *options]) == 0
        assert load(place).recipe.ranges == ranges


@pytest.mark.parametrize(
    ("options", "says"),
    [(["--weight-bits", "1"], "2"), (["--output", "user.py"], "user.py")],
)
def test_bad_options_are_one_sentence(at, capsys, options, says) -> None:
    assert says in refused(
        capsys, "prepare", "user.py:build", "--calibration", "user.py:images", *options
    )
