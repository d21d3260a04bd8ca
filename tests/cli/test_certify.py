"""`brevitas-axe certify` of a saved transformer whose attention multiplies integers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from brevitas_axe import save
from brevitas_axe.cli import main
from brevitas_axe.model.attention_products import products_plan
from brevitas_axe.plan import LayerPrecision, Plan
from tests.export.finn import vit
from tests.export.finn.vit import P


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(vit.solved(), tmp_path_factory.mktemp("vit") / "saved")


def certified(saved: Path, plan: Plan, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict]:
    """Exit status, and target of every dot product by name."""
    plan.save(saved.parent / "asked.json")
    asked = ["--plan", str(saved.parent / "asked.json"), "--model", f"{vit.__file__}:Classifier"]
    status = main(["certify", str(saved), *asked, "--json"])
    entries = json.loads(capsys.readouterr().out)["entries"]
    return status, {entry["name"]: entry["target"] for entry in entries}


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
