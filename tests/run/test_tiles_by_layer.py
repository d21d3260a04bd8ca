"""Tiles of different sizes in one model, from the solve to the files."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe import load, save
from brevitas_axe.export.layers import export_layers
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify_file
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import batches, tiny

FIRST, SECOND = "model.layers.0", "model.layers.1"
# Of 32 inputs, but down_proj, which has 64.
TILES = {f"{FIRST}.self_attn.q_proj": 16, f"{FIRST}.mlp.up_proj": 32, f"{FIRST}.mlp.down_proj": 24}


@pytest.mark.parametrize(("weights", "planned"), [("channel", True), ("tile", False)])
def test_every_layer_may_have_a_tile_of_its_own(weights, planned: bool, tmp_path) -> None:
    model, data = tiny("llama").eval(), batches("llama")
    usual = LayerPrecision(4, 8, accumulator=13, tile=8)
    solver = {"weights": weights, "solver": "gptq", "quality": "fast"}
    if planned:
        names = [n for n, m in model.named_modules() if type(m) is torch.nn.Linear and FIRST in n]
        plan = Plan({n: LayerPrecision(4, 8, 13, TILES.get(n, 8)) for n in names})
        if weights == "channel":  # a tile as long as the row is the whole row
            plan = Plan({**plan.layers, f"{FIRST}.mlp.up_proj": LayerPrecision(4, 8, 13)})
        arguments = plan, Recipe(**solver)
    else:
        rules = {name: {"tile": tile} for name, tile in TILES.items()}
        arguments = usual, Recipe(**solver, rules=rules)
    result = quantize_blocks(model, data, *arguments, exclude=(SECOND,), run=Run(progress=False))
    result.certificate.require()
    proofs = {entry.name: entry for entry in result.certificate.judged}
    for name, proof in proofs.items():
        wanted = TILES.get(name, 8)
        assert proof.target == 13
        assert (proof.tile_size or 32) == wanted
        layer = result.model.get_submodule(name)
        assert weights == "channel" or layer.weight_quant.scale_tile == wanted
    assert {*TILES} <= {*proofs}
    again = load(save(result, tmp_path / "saved"))
    assert torch.equal(again.model(data[0]).logits, result.model(data[0]).logits)
    assert again.plan == result.plan
    if weights == "channel":
        files = export_layers(result.model, tmp_path, TILES, target="qonnx")
        for name, file in files.items():
            [entry] = certify_file(file, plan=Plan({name: result.plan[name]})).entries
            assert entry.proven
            assert entry.width == proofs[name].width
