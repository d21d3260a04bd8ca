"""One short run of the classifier: it goes on after a kill, and leaves proven files and a table."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from brevitas_axe.applications.quickstart import DataSplit, convolution
from brevitas_axe.applications.wildfire import arms as arms_module
from brevitas_axe.applications.wildfire import run
from brevitas_axe.applications.wildfire.arms import (
    QUICK,
    SCORES,
    TASKS,
    Case,
    Settings,
    arms,
    scores,
)
from brevitas_axe.applications.wildfire.latency import write_qdq
from brevitas_axe.applications.wildfire.measures import measured
from brevitas_axe.applications.wildfire.nets import UNet
from brevitas_axe.cli import main
from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.export import check_finn
from brevitas_axe.export.execution import Execution
from brevitas_axe.proof.certificate import certify_file

SETTINGS = Settings(size=16, pictures=48, epochs=1, tuned_epochs=1, seeds=1, accumulator=13)
TUTORIAL = (Path(__file__).parents[3] / "docs/tutorial_wildfire.md").read_text(encoding="utf-8")
# Of the classifier's kinds of layers one each, as every layer takes time.
SMALL = {
    "classifier": lambda: nn.Sequential(
        convolution(3, 8, stride=2),
        convolution(8, 8, groups=8),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
}
SHOWN = ("FP32", "PTQ W8A8", "PTQ W4A4", "QAT W4A4", "mixed, narrow")


class Killed(Exception):
    """The run ends here."""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[Path, dict[str, Any], list[list[str]]]:
    """A run of the classifier's arms that was killed at the third, and begun again."""
    folder, made = tmp_path_factory.mktemp("wildfire"), [[], []]

    def counted(case: Case, arm: Any) -> dict[str, Any]:
        made[0 if not made[1] and len(made[0]) < 3 else 1].append(arm.name)
        if len(made[0]) == 3 and not made[1]:
            made[1].append("again")
            raise Killed
        return measured(case, arm)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arms_module, "NETS", SMALL)
        patch.setattr(run, "TASKS", ("classifier",))
        patch.setattr(run, "arms", lambda s: [arm for arm in arms(s) if arm.name in SHOWN])
        patch.setattr(run, "measured", counted)
        with pytest.raises(Killed):
            run.wildfire(folder, SETTINGS, progress=False)
        assert not (folder / "report.html").exists()
        summary = run.wildfire(folder, SETTINGS, progress=False)
        assert run.wildfire(folder, SETTINGS, progress=False)["rows"] == summary["rows"]
        with pytest.raises(InvalidState, match="holds a run with size 16, not 20"):
            run.wildfire(folder, Settings(size=20), progress=False)
    return folder, summary, made


def test_a_killed_run_goes_on_with_the_arm_that_it_was_making(outcome) -> None:
    _, summary, made = outcome
    assert made == [list(SHOWN[:3]), ["again", *SHOWN[2:]]]
    assert [row["name"] for row in summary["rows"]["classifier"]] == list(SHOWN)


def test_every_arm_is_measured(outcome) -> None:
    _, summary, _ = outcome
    rows = {row["name"]: row for row in summary["rows"]["classifier"]}
    for row in rows.values():
        assert all(0 <= row[score] <= 1 for score in SCORES)
        assert row["memory"] > row["size"] > 0
    eight, four, narrow = (rows[name] for name in ("PTQ W8A8", "PTQ W4A4", "mixed, narrow"))
    assert eight["size"] == 2 * four["size"] < rows["FP32"]["size"]
    assert eight["lut"] > four["lut"]
    assert rows["FP32"]["bops"] == 16 * eight["bops"]
    assert narrow["accumulator"] <= SETTINGS.accumulator < eight["accumulator"]
    assert all(row["cycles"] <= SETTINGS.cycles for row in (eight, four, narrow))
    assert all(0 < rows[name]["p50"] <= rows[name]["p95"] for name in ("FP32", "PTQ W8A8"))
    assert "p50" not in four


def test_the_file_is_proven_and_finn_takes_it(outcome) -> None:
    folder, summary, _ = outcome
    assert summary["proven"]
    assert certify_file(folder / "classifier.onnx", accumulator_bit_width=SETTINGS.accumulator).ok
    assert check_finn(folder / "classifier.onnx") == []
    written = json.loads((folder / "classifier.certificate.json").read_text())
    assert written == json.loads(
        (folder / "arms/classifier-0/mixed-narrow.certificate.json").read_text()
    )


def test_the_pages_tell_what_the_summary_has(outcome) -> None:
    folder, summary, _ = outcome
    html, text = ((folder / f"report.{kind}").read_text("utf-8") for kind in ("html", "md"))
    for page, mark in ((html, ""), (text, "`")):
        assert "synthetic" in page
        assert "estimates for its HLS units" in page
        for claim in summary["claims"]:
            assert claim["claim"].replace("`", mark) in page
    assert text.count("\n| ") == len(SHOWN) + 1 + len(summary["claims"]) + 1
    assert json.loads((folder / "summary.json").read_text())["claims"] == summary["claims"]


def test_the_tutorial_s_commands_do_what_it_says(outcome, tmp_path, monkeypatch, capsys) -> None:
    blocks = re.findall(r"^```bash\nbrevitas-axe (.*?)\n```$", TUTORIAL, re.MULTILINE)
    whole, *others = map(shlex.split, blocks)
    (tmp_path / "wildfire").symlink_to(outcome[0])
    monkeypatch.chdir(tmp_path)
    asked = []
    monkeypatch.setattr(run, "wildfire", lambda *given: asked.append(given) or outcome[1])
    assert main(whole) == 0
    assert asked == [("wildfire", QUICK, False)]
    assert [command[0] for command in others] == ["check", "certify"]
    for command in others:
        assert main(command) == 0, capsys.readouterr()
    for arm in arms(Settings(tune_trials=1)):
        assert arm.name in TUTORIAL


def test_claims_are_judged_seed_by_seed() -> None:
    made = {"FP32": 0.9, "PTQ W8A8": 0.885, "PTQ W4A4": 0.7, "QAT W4A4": 0.8}
    known = {
        (task, seed, name): {"accuracy": value, "miou": value}
        for task in ("classifier", "unet")
        for seed in (0, 1)
        for name, value in made.items()
    }
    settings = Settings(seeds=2)
    assert [c["met"] for c in run.claims(known, settings)] == [False, True, True] * 2
    known["classifier", 1, "PTQ W8A8"] = {"accuracy": 0.9, "refused": ["'up' is refused."]}
    known["unet", 0, "QAT W4A4"] = {"miou": 0.7}
    assert [c["met"] for c in run.claims(known, settings)] == [
        *(True, True, False),
        *(False, False, True),
    ]


def test_integers_of_8_bits_answer_the_same_as_qdq(outcome, tmp_path: Path) -> None:
    import onnxruntime

    file = outcome[0] / "arms/classifier-0/ptq-w8a8.onnx"
    write_qdq(file, tmp_path / "qdq.onnx")
    kinds = [node.op_type for node in onnx.load(tmp_path / "qdq.onnx").graph.node]
    assert "Quant" not in kinds
    assert kinds.count("Conv") == 2
    assert kinds.count("Add") == 1  # that of the linear layer
    qonnx, session = Execution(onnx.load(file)), onnxruntime.InferenceSession(tmp_path / "qdq.onnx")
    x = np.random.default_rng(0).random((1, 3, 16, 16), np.float32)
    [name] = qonnx.inputs
    [expected], [found] = qonnx({name: x}).values(), session.run(None, {name: x})
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("task", TASKS)
def test_the_nets_become_proven_files(task: str, tmp_path: Path) -> None:
    case = Case(task, 0, SETTINGS, tmp_path, progress=False)
    [arm] = [arm for arm in arms(SETTINGS) if arm.name == "PTQ W4A4"]
    row = measured(case, arm)
    assert row["proven"]
    assert certify_file(tmp_path / "ptq-w4a4.onnx").ok
    assert row["refused"] == []
    rules = {note.rule for note in check_finn(tmp_path / "ptq-w4a4.onnx", notes=True)}
    assert ("upsampling" in rules) == (task == "unet")


def test_the_u_net_answers_for_every_pixel() -> None:
    assert UNet()(torch.rand(2, 3, 16, 24)).shape == (2, 2, 16, 24)


def test_scores_are_those_of_the_confusion_matrix() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros(len(x)), x[:, 0, 0, 0]], 1)

    # 5 right without a fire, 1 false alarm, 2 missed, 4 found.
    answers = torch.tensor([-1.0] * 5 + [1.0] + [-1.0] * 2 + [1.0] * 4)
    split = DataSplit(answers.reshape(-1, 1, 1, 1), torch.tensor([0] * 6 + [1] * 6))
    expected = {
        "accuracy": 9 / 12,
        "f1": 8 / 11,
        "mpa": (5 / 6 + 4 / 6) / 2,
        "miou": (5 / 8 + 4 / 7) / 2,
    }
    assert scores(Fixed(), split) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        (("--size", "30"), "multiple of 4"),
        (("--seeds", "0"), "seeds must be at least 1"),
        (("--fps", "0"), "frames per second"),
        (("--data", "nowhere"), "there is no folder nowhere/frames/Training"),
    ],
)
def test_the_command_refuses_what_it_cannot_use(option, sentence, tmp_path, capsys) -> None:
    assert main(["wildfire", "--quick", "--output", str(tmp_path / "out"), *option]) == 2
    assert sentence in capsys.readouterr().err


def test_pictures_are_asked_for_once() -> None:
    with pytest.raises(InvalidOption, match="pictures must be at least 8"):
        Settings(pictures=1)
