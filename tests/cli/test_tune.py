"""The command `tune`: trials, a page, a folder as `quantize` writes it, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brevitas_axe.cli import main
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.recipe import Recipe
from brevitas_axe.run import widths
from brevitas_axe.run.finetune import FinetuneResult
from brevitas_axe.run.saving.load import load
from tests.cli.refusals import refused

TUNE = ("tune", "user.py:build", "--calibration", "user.py:images", "--validate", "user.py:size")
# Quick: fast solves with plain widths.
QUICK = (
    "--accumulator-bits", "9", "--decide", "quality=fast", "--decide", "widths=default",
    "--decide", "solver=gptq,gpfq", "--decide", "transforms=none", "--decide", "ranges=max",
    "--cost", "bops",
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _few_widths():
    """Automatic widths that try two plans, so that each is found in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "WEIGHT_BITS", (4,))
        patch.setattr(widths, "INPUT_BITS", (4,))
        patch.setattr(widths, "_UNIFORM", 1)
        patch.setattr(widths, "_SEARCHED", "ilp")
        yield


@pytest.fixture(scope="module")
def tuned(solved_place, tmp_path_factory) -> tuple[Path, Path]:
    """The output folder of two trials, and the folder of their state."""
    output, state = (tmp_path_factory.mktemp(name) for name in ("out", "state"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(solved_place)
        more = ("--trials", "2", "--output", str(output), "--state", str(state))
        assert main([*TUNE, *QUICK, *more]) == 0
    return output, state


def test_it_writes_what_quantize_writes_and_a_page_of_trials(tuned) -> None:
    output, _ = tuned
    summary = json.loads((output / "summary.json").read_text())
    assert len(summary["trials"]) == 2
    assert summary["best"]["value"] == max(trial["value"] for trial in summary["trials"])
    assert summary["plain"] == summary["trials"][0]
    plan = Plan.load(output / "plan.json")
    assert {p.accumulator for p in plan.layers.values()} == {9}
    assert certify_file(output / "model.onnx", plan=plan).ok
    assert Recipe.load(output / "recipe.yaml").quality == "fast"
    assert load(output).plan == plan
    page = (output / "trials.html").read_text()
    assert "value against bops" in page
    assert page.count("<tr") == 3
    assert ">chosen<" in page
    assert "<script" not in page


def test_the_next_command_goes_on_from_the_folder(tuned, at, capsys) -> None:
    output, _ = tuned
    assert main(["compare", str(output), "--cost", "bops", "--validate", "user.py:size"]) == 0
    assert "yes" in capsys.readouterr().out


def test_the_same_command_makes_no_trial_again(tuned, at, tmp_path, capsys, monkeypatch) -> None:
    output, state = tuned
    monkeypatch.setattr(
        "brevitas_axe.run.tune.measure.quantize", lambda *_, **__: pytest.fail("it was solved")
    )
    more = ("--trials", "2", "--output", str(tmp_path), "--state", str(state))
    assert main([*TUNE, *QUICK, *more]) == 0
    assert f"trials that {state} has are not made again" in capsys.readouterr().out
    first = json.loads((output / "summary.json").read_text())
    assert json.loads((tmp_path / "summary.json").read_text())["trials"] == first["trials"]


def test_training_is_the_last_trial(at, tmp_path, capsys) -> None:
    more = ("--trials", "1", "--output", str(tmp_path), "--train", "user.py:labelled")
    assert main([*TUNE, *QUICK, *more, "--epochs", "1", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["proven"]
    assert [trial["trained"] for trial in content["trials"]] == [0, 1]
    if content["best"]["trained"]:
        assert isinstance(load(tmp_path), FinetuneResult)


def test_no_trial_within_the_drop_is_exit_status_one(at, tmp_path, capsys) -> None:
    more = ("--trials", "1", "--output", str(tmp_path), "--max-drop", "0%")
    judged = ("--validate", "user.py:likeness")
    assert main([*TUNE, *QUICK, *more, *judged]) == 1
    assert "no trial is within --max-drop" in capsys.readouterr().out


def test_an_interrupted_run_says_how_it_goes_on(at, tmp_path, monkeypatch, capsys) -> None:
    def interrupts(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("brevitas_axe.run.tune.measure.quantize", interrupts)
    more = ("--output", str(tmp_path / "out"), "--state", "trials-here")
    assert main([*TUNE, *QUICK, *more]) == 130
    assert "the same command goes on from trials-here" in capsys.readouterr().err


CASES = {
    "": "tune needs a limit",
    "--accumulator-bits 1": "between 2 and 64",
    "--accumulator-bits 9 --minutes 0": "minutes must be a positive number",
    "--accumulator-bits 9 --trials 0": "trials must be a whole number",
    "--accumulator-bits 9 --decide solver": "--decide is NAME=VALUE,VALUE",
    "--accumulator-bits 9 --decide solver=magic": "'magic' is not registered",
    "--accumulator-bits 9 --decide colour=red": "'colour' is no decision",
    "--accumulator-bits 9 --searcher magic": "'magic' is not registered",
    "--accumulator-bits 9 --cost watts": "'watts' is not registered",
    "--accumulator-bits 9 --earlier nowhere": "no folder nowhere",
    "--accumulator-bits 9 --recipe nowhere.yaml": "no recipe 'nowhere.yaml'",
    "--accumulator-bits 9 --validate user.py:nobody": "no function named 'nobody'",
    "--accumulator-bits 9 --validate user.py:word": "must return a number",
    "--accumulator-bits 9 --validate user.py:divides": "division by zero (user.py, line",
    "--accumulator-bits 9 --exclude nobody": "'nobody' is not in the model",
    "--budget finn_lut": "the budget of ''",
    "--budget watts=3": "'watts' is not registered",
    "--budget bops=1": "the least possible",
    "--max-drop much": "max_drop is a number",
}


@pytest.mark.parametrize("more", CASES, ids=str)
def test_bad_input_is_one_sentence(at, tmp_path, more, capsys) -> None:
    output = ("--output", str(tmp_path / "out"))
    assert CASES[more] in refused(capsys, *TUNE, *more.split(), *output)


def test_a_model_and_a_function_are_needed(capsys) -> None:
    assert "required: --validate" in refused(
        capsys, "tune", "user.py:build", "--calibration", "user.py:images", "--trials", "1"
    )
