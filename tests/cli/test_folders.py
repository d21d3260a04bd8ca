"""Every command leaves a folder that the next one takes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import brevitas_axe.export
from brevitas_axe import load
from brevitas_axe.cli import main
from brevitas_axe.errors import ExportRefused
from tests.walk import nets

USER_FILE = """
import torch
from tests.walk import nets

NET = nets.{build}

def build():
    return nets.seeded(NET)

def images():
    return [nets.data(NET)]

def labelled():
    return [(nets.data(NET), nets.labels(NET))]

"""
DATA = ("--calibration", "user.py:images")
SOLVE = ("quantize", "user.py:build", *DATA, "--quality", "fast")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder with the user's file for one net."""
    monkeypatch.chdir(tmp_path)

    def made(build: str) -> Path:
        (tmp_path / "user.py").write_text(USER_FILE.format(build=build))
        return tmp_path

    return made


def done(capsys, *command: str, status: int = 0) -> str:
    found = main(command)
    captured = capsys.readouterr()
    assert found == status, captured
    return captured.out if status != 2 else captured.err


@pytest.mark.parametrize("build", ["Residual", "qat", "Untraceable"])
def test_a_walk_by_commands(build, place, capsys) -> None:
    folder = place(build)
    net = getattr(nets, build)
    np.save("x.npy", nets.data(net, 1).numpy())
    own = ["--model", "user.py:build"] if build == "Untraceable" else []
    widths = ["--weight-bits", "3", "4", "--input-bits", "4", "6", "--accumulator-bits", "16"]
    done(capsys, "allocate", "user.py:build", *DATA, "--budget", "bops=1e9", *widths)
    done(capsys, *SOLVE, "--plan", "plan.json", "--state", "layers", "--output", "solved")
    done(capsys, "emulate", "solved", "--inputs", "x.npy", "--output", "y.npy")
    labelled = ["--data", "user.py:labelled", "--validation", "user.py:labelled"]
    more = ["--epochs", "1", "--state", "epochs", "--output", "tuned"]
    done(capsys, "finetune", "solved", *own, *labelled, *more)
    assert "fits in" in done(capsys, "certify", "tuned", *own)
    done(capsys, "certify", "tuned", *own, "--accumulator-bits", "4", status=1)
    assert "export tuned" in done(capsys, "check", "tuned", status=2)
    done(capsys, "export", "tuned", "tuned/model.onnx", "--target", "qonnx", *own)
    assert json.loads(done(capsys, "certify", "tuned/model.onnx", "--json"))["ok"]
    done(capsys, "certify", "tuned/model.onnx", "--plan", "tuned/plan.json")
    done(capsys, "emulate", "tuned", "--inputs", "x.npy", "--output", "y.npy")
    model = load(folder / "tuned", net if own else None).model
    expected = model(nets.data(net, 1))
    expected = getattr(expected, "value", expected).detach().numpy()
    assert np.allclose(np.load("y.npy"), expected, atol=1e-4)
    done(capsys, "finetune", "tuned", *own, *labelled, "--epochs", "1", "--output", "again")


def test_widths_are_chosen_while_a_folder_is_trained_on(place, capsys) -> None:
    folder = place("Residual")
    done(capsys, *SOLVE, "--accumulator-bits", "14", "--output", "solved")
    search = ["--search", "reinforce:rate=0.2", "--budget", "bops=60%", "--epochs", "2"]
    command = ["finetune", "solved", "--data", "user.py:labelled", *search]
    assert "reward" in done(capsys, *command, "--state", "epochs", "--output", "searched")
    assert (folder / "searched" / "policy.png").read_bytes().startswith(b"\x89PNG")
    assert "proven" in done(capsys, "certify", "searched")
    plan = json.loads((folder / "searched" / "plan.json").read_text())["layers"]
    assert {each["accumulator"] for each in plan.values()} == {14}
    assert all(each["weight"] == each["input"] for each in plan.values())
    done(capsys, "export", "searched", "searched/model.onnx", "--target", "qonnx")


def test_what_was_solved_is_kept_whatever_the_export_says(place, capsys, monkeypatch) -> None:
    folder = place("mlp")

    def refuses(*_: object, **__: object) -> None:
        raise ExportRefused("layer '0' is refused; leave it.")

    monkeypatch.setattr(brevitas_axe.export, "export_qonnx", refuses)
    sentence = done(capsys, *SOLVE, "--accumulator-bits", "16", "--output", "out", status=2)
    assert "layer '0' is refused; leave it; what was solved is kept in out/model." in sentence
    assert load(folder / "out").certificate.ok


def test_finn_s_refusals_come_before_the_solve(place, capsys, monkeypatch) -> None:
    import brevitas_axe.run.quantize

    def never(*_: object, **__: object) -> None:
        raise AssertionError("solved before it was checked")

    place("mlp")
    monkeypatch.setattr(brevitas_axe.run.quantize, "quantize", never)
    bits = ["--accumulator-bits", "16", "--input-bits", "10"]
    assert "10" in done(capsys, *SOLVE, *bits, "--target", "finn", status=2)


def test_a_net_for_finn_is_prepared(place, capsys) -> None:
    place("cnn")
    done(capsys, *SOLVE, "--accumulator-bits", "16", "--target", "finn", "--output", "out")
    done(capsys, "check", "out")


def test_bits_that_are_given_are_heeded_by_models_with_quantizers(place, capsys) -> None:
    folder = place("qat")
    bits = ["--weight-bits", "3", "--input-bits", "5", "--accumulator-bits", "16"]
    done(capsys, *SOLVE, *bits, "--output", "out")
    plan = load(folder / "out").plan
    assert {(p.weight, p.input) for p in plan.layers.values()} == {(3, 5)}
    done(capsys, *SOLVE, "--accumulator-bits", "16", "--output", "own")
    own = load(folder / "own").plan
    assert [(p.weight, p.input) for p in own.layers.values()] == [(4, 8), (4, 6)]


def test_an_output_that_holds_other_things_is_refused_before_the_work(place, capsys) -> None:
    folder = place("mlp")
    (folder / "out" / "model").mkdir(parents=True)
    (folder / "out" / "model" / "photo.png").write_text("x")
    command = [*SOLVE, "--accumulator-bits", "16", "--output", "out"]
    assert "holds other files" in done(capsys, *command, status=2)
    assert "no folder that" in done(capsys, "certify", "out", status=2)
    emulated = ("emulate", "out", "--inputs", "x.npy", "--output", "y.npy")
    assert "--accumulator-bits" in done(capsys, *emulated, status=2)
