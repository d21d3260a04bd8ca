"""Layers in front of and behind the blocks that become integers, too."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brevitas_axe import Recipe, load, save
from brevitas_axe.errors import InvalidOption
from brevitas_axe.export import export_qonnx
from brevitas_axe.model.attention_products import products_plan
from brevitas_axe.proof.certificate import certify_file
from tests.run.solved import P, solve
from tests.run.tiny import batches, tiny

OUTSIDE = {"embeddings.patch_embeddings.projection", "pooler.dense"}
INTEGERS = {"attention": "quantized", "outside": "quantized", "tile_size": None}


@pytest.fixture(scope="module")
def solved():
    return solve("vit", **INTEGERS)


def test_nothing_that_multiplies_stays_in_float(solved) -> None:
    assert set(solved.plan.layers) >= OUTSIDE
    assert solved.floats == ()
    proven = {entry.name: entry.target for entry in solved.certificate.require().judged}
    assert {proven[name] for name in OUTSIDE} == {P}
    entries = {entry["name"]: entry for entry in solved.layers}
    for name in OUTSIDE:
        assert "block" not in entries[name]
        assert entries[name]["inner_bits"] <= P


def test_the_whole_model_is_one_file_that_is_proven(solved, tmp_path: Path) -> None:
    path = tmp_path / "vit.onnx"
    # It compares the file's outputs with the model's.
    export_qonnx(solved.model, batches("vit")[0][:1], path, target="qonnx")
    certificate = certify_file(path, P).require()
    assert len(certificate.judged) == len(solved.certificate.judged) == 12 + 4 + 2
    assert {entry.layer for entry in certificate.judged} >= {*products_plan(solved.model).layers}


def test_a_saved_result_has_them_again(solved, tmp_path: Path) -> None:
    again = load(save(solved, tmp_path / "saved"), tiny("vit"))
    x = batches("vit")[0]
    with torch.no_grad():
        mine, other = (result.model(x).pooler_output for result in (solved, again))
    assert torch.equal(mine, other)


def test_rules_and_exclusions_reach_them() -> None:
    options = {**INTEGERS, "attention": "float"}
    result = solve(
        "vit",
        recipe=Recipe(rules={"type:Conv2d": {"weight": 6}}),
        exclude=["pooler.dense"],
        **options,
    )
    assert result.plan["embeddings.patch_embeddings.projection"].weight == 6
    assert "pooler.dense" in result.floats
    assert "pooler.dense" not in result.plan.layers


def test_by_default_they_stay_in_float() -> None:
    assert set(solve("vit").floats) >= OUTSIDE


def test_a_head_that_shares_its_weights_with_the_embedding_stays_in_float() -> None:
    model = tiny("gpt2")
    assert model.lm_head.weight is model.transformer.wte.weight
    result = solve(model, outside="quantized", tile_size=None)
    assert "lm_head" in result.floats


def test_scales_per_tile_are_refused() -> None:
    with pytest.raises(InvalidOption, match="leave the layers outside in float"):
        solve("vit", outside="quantized", tile_scales=True)
