"""Solved blocks that learn, and keep what they had where that is better."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from brevitas_axe import load, quantize, save
from brevitas_axe.errors import InvalidOption
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run import block_distillation
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.result import BlocksResult
from tests.run.tiny import VOCABULARY, tiny

WIDTHS = LayerPrecision(4, 8, accumulator=11, tile=8)


def tokens(count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(0, VOCABULARY, (16, 24), generator=generator) for _ in range(count)]


def solved(steps: int) -> BlocksResult:
    recipe = Recipe(solver="gptq", quality="fast", distill=steps)
    return quantize_blocks(
        tiny("llama").eval(), tokens(), WIDTHS, recipe,
        exclude=("model.layers.1",), run=Run(progress=False),
    )  # fmt: skip


def test_a_block_learns_within_its_accumulators(tmp_path) -> None:
    result = solved(40)
    result.certificate.require()
    [entry] = result.learned
    assert entry["block"] == "model.layers.0"
    assert entry["kept"] == entry["learned"] < 0.9 * entry["start"]
    assert {proof.target for proof in result.certificate.judged} == {11}
    for name in result.plan.layers:
        layer = result.model.get_submodule(name)
        assert torch.equal(layer.quant_weight().value, layer.weight)  # they are on the grid
    again = load(save(result, tmp_path / "saved"))
    with torch.no_grad():
        one, other = (r.model(tokens(1)[0]).logits for r in (result, again))
    assert torch.equal(one, other)


def test_what_was_there_is_kept_where_learning_does_harm(monkeypatch) -> None:
    monkeypatch.setattr(block_distillation, "RATE", 10.0)
    plain, result = solved(0), solved(4)
    [entry] = result.learned
    assert entry["learned"] > entry["start"] == entry["kept"]
    states = zip(plain.model.state_dict().items(), result.model.state_dict().values(), strict=True)
    assert all(torch.equal(mine, other) for (_, mine), other in states)
    trained = [p.requires_grad for p in result.model.parameters()]
    assert trained == [p.requires_grad for p in plain.model.parameters()]


def test_what_cannot_learn_is_refused_before_the_work() -> None:
    recipe = Recipe(distill=3)
    with pytest.raises(InvalidOption, match="give two batches of calibration or more"):
        quantize_blocks(tiny("llama").eval(), tokens(1), WIDTHS, recipe, progress=False)
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(InvalidOption, match="this model is solved as a whole"):
        quantize(net, [torch.randn(8, 4)], LayerPrecision(4, 8), recipe, progress=False)
    with pytest.raises(InvalidOption, match="distill is a number of steps from 0, not -1"):
        Recipe(distill=-1)
