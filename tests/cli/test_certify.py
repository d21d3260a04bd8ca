"""`brevitas-axe certify`: of attention products, and of chosen layers alone."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from brevitas_axe import load, save
from brevitas_axe.cli import main
from brevitas_axe.export import export_qonnx
from brevitas_axe.model.attention_products import products_plan, with_products
from brevitas_axe.plan import LayerPrecision, Plan
from tests.export.finn import vit
from tests.export.finn.vit import P
from tests.walk import nets


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(vit.solved(), tmp_path_factory.mktemp("vit") / "saved")


def certified(saved: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    """Exit status, and target of every dot product by its name in plans."""
    plan.save(saved.parent / "asked.json")
    asked = ["--plan", str(saved.parent / "asked.json")]
    if saved.is_dir():
        asked += ["--model", f"{vit.__file__}:Classifier"]
    status = main(["certify", str(saved), *asked, "--json"])
    entries = json.loads(capsys.readouterr().out)["entries"]
    return status, {entry["layer"] or entry["name"]: entry["target"] for entry in entries}


@pytest.fixture(scope="module", params=["qonnx", "finn"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("file") / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of ties in FINN
        export_qonnx(vit.solved().model, vit.pictures(1), path, target=request.param)
    return path


def test_a_file_names_products_as_plans_do(file: Path, capsys) -> None:
    whole = with_products(vit.solved().plan, vit.solved().model)
    status, targets = certified(file, whole, capsys)
    assert status == 0
    assert targets == dict.fromkeys(whole.layers, P)
    [scores, context] = products_plan(vit.solved().model).layers
    narrow = Plan({**whole.layers, scores: LayerPrecision(accumulator=P - 4)})
    status, targets = certified(file, narrow, capsys)
    assert status == 1
    assert (targets[scores], targets[context]) == (P - 4, P)


def test_products_that_a_plan_leaves_out_keep_their_accumulator(saved, capsys) -> None:
    status, targets = certified(saved, vit.solved().plan, capsys)
    assert status == 0
    assert set(targets.values()) == {P}


def test_products_that_a_plan_names_get_its_accumulator(saved, capsys) -> None:
    [scores, context] = products_plan(vit.solved().model).layers
    plan = Plan({**vit.solved().plan.layers, scores: LayerPrecision(accumulator=P - 4)})
    status, targets = certified(saved, plan, capsys)
    assert status == 1
    assert (targets[scores], targets[context]) == (P - 4, P)


@pytest.mark.parametrize("model", ["solved", "solved/model.onnx"])
def test_a_verdict_on_chosen_layers_does_not_speak_for_the_model(at, model, capsys) -> None:
    names = list(load("solved").plan.layers)
    assert main(["certify", model, "--accumulator-bits", "12", "--include", names[0]]) == 0
    said = capsys.readouterr().out
    assert f"proven for 1 of {len(names)} dot products" in said
    assert "Nothing is claimed of" in said
    assert "next: nothing is claimed of the others; for the whole model: brevitas-axe" in said
    narrow = ["certify", model, "--accumulator-bits", "4", "--exclude", names[0], "--json"]
    assert main(narrow) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert found["unclaimed"] == [names[0]]
    everything = ["certify", model, "--exclude", "*"]
    assert main(everything) == 1
    assert "NOT proven, 0 of" in capsys.readouterr().out


def test_a_page_has_the_verdict_and_the_graph(at, tmp_path, capsys) -> None:
    name, report = next(iter(load("solved").plan.layers)), tmp_path / "page.html"
    command = ["certify", "solved/model.onnx", "--include", name, "--report", str(report)]
    assert main(command) == 0
    assert str(report) in capsys.readouterr().out
    text = report.read_text(encoding="utf-8")
    assert "proven in part" in text
    assert "The graph of model.onnx" in text


def test_accumulators_of_chosen_layers_overflow_alone(at, tmp_path, capsys) -> None:
    names = list(load("solved").plan.layers)
    x, y = str(tmp_path / "x.npy"), str(tmp_path / "y.npy")
    np.save(x, nets.data(nets.cnn, 1).numpy())
    run = ["emulate", "solved", "--inputs", x, "--output", y, "--json"]
    assert main([*run, "--accumulator-bits", "4"]) == 0
    whole = json.loads(capsys.readouterr().out)["layers"]
    assert main([*run, "--accumulator-bits", "4", "--include", names[0]]) == 0
    part = json.loads(capsys.readouterr().out)["layers"]
    assert part[names[0]] == whole[names[0]]
    assert part[names[0]]["overflows"] > 0
    assert not any(part[name]["overflows"] for name in names[1:])
