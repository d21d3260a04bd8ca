"""Transformers whose blocks have floating-point formats."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from brevitas_axe import LayerPrecision, Plan, Recipe, export_layers, export_qonnx, load, save
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.formats import minifloat
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.export.finn.vit import Classifier, pictures
from tests.run.tiny import batches, tiny


def test_the_whole_model_its_file_and_its_saved_form_agree(tmp_path: Path) -> None:
    recipe = Recipe(
        rules={"*.fc1": {"weight": "e2m1", "input": 6}, "*.projection": {"weight": 6}},
        attention="quantized",
        outside="quantized",
        quality="fast",
    )
    widths = LayerPrecision("e2m3", "e3m2", 26)
    model = Classifier().eval()
    with torch.no_grad():
        wanted = model(pictures(8))
        result = quantize_blocks(model, [pictures(8)], widths, recipe, progress=False)
        assert (result.model(pictures(8)) - wanted).norm() < 0.3 * wanted.norm()
    given = {n.rpartition(".")[2]: (p.weight, p.input) for n, p in result.plan.layers.items()}
    assert given["q_proj"] == given["classifier"] == ("e2m3", "e3m2")
    assert (given["fc1"], given["projection"]) == (("e2m1", 6), (6, "e3m2"))
    live = {entry.name: entry for entry in result.certificate.require().judged}
    export_qonnx(result.model, pictures(1), tmp_path / "model.onnx", target="qonnx")
    proof = certify_file(tmp_path / "model.onnx", plan=result.plan).require()
    for entry in proof.judged:
        mine = live[entry.layer or entry.name]
        assert (entry.minimum, entry.maximum) == (mine.minimum, mine.maximum)
    again = load(save(result, tmp_path / "saved"), Classifier())
    assert again.plan == result.plan
    assert again.certificate.entries == result.certificate.entries
    with torch.no_grad():
        # Equal integers; sums of floats between them may be added in another order.
        torch.testing.assert_close(again.model(pictures(2)), result.model(pictures(2)))


def test_tiles_hold_in_the_files_of_layers(tmp_path: Path) -> None:
    first = "layers.0.mlp.fc1"
    plan = Plan({first: LayerPrecision("e2m1", "e2m3", 11, 8)})
    result = quantize_blocks(tiny("vit"), batches("vit"), plan, quality="fast", progress=False)
    [file] = export_layers(result.model, tmp_path, target="qonnx").values()
    [entry] = certify_file(file, plan=plan).require().judged
    assert (entry.tile_size, entry.target) == (8, 11)
    numbers = integer_weight(first, find_layers(result.model)[first])[0]
    assert 0 < len(numbers.unique()) <= len(minifloat("e2m1").integers)
    assert set(numbers.flatten().tolist()) <= set(minifloat("e2m1").integers)


WEIGHTS, INPUTS = LayerPrecision("e2m1", 8), Plan({"0": LayerPrecision(4, "e4m3")})


@pytest.mark.parametrize(
    ("plan", "options", "says"),
    [
        (
            WEIGHTS,
            {"solver": "learned_rounding:scope=block"},
            "whole blocks rounds only",
        ),
        (WEIGHTS, {"recipe": Recipe(split="trit_planes")}, r"'\*' is planned in e2m1, but splits"),
        (INPUTS, {"recipe": Recipe(split="slim")}, "'0' is planned in e4m3, but splits"),
        (WEIGHTS, {"tile_scales": True, "recipe": None}, "scales per tile fit only integers"),
        (INPUTS, {"activations": "per_token"}, "found at run time fit only integers"),
        (INPUTS, {"symmetric": False}, "zero points of inputs fit only integers"),
        (
            None,
            {"recipe": Recipe(rules={"*.fc": {"weight": "e5m2"}}, weights="tile"), "tile_size": 8},
            r"'\*.fc' is planned in e5m2, but scales per tile",
        ),
    ],
    ids=["learning", "trit planes", "slim", "tiles", "per token", "zero point", "rule"],
)
def test_what_cannot_be_is_refused_before_any_forward(plan, options, says) -> None:
    model = tiny("llama").eval()
    model.register_forward_pre_hook(lambda *_: pytest.fail("it ran"))
    if options.get("tile_scales"):
        plan = LayerPrecision(plan.weight, plan.input, 14, 8)
    with pytest.raises(InvalidPlan, match=says):
        quantize_blocks(model, batches("llama"), plan, progress=False, **options)
