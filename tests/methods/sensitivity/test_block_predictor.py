"""Blocks that change little get few bits."""

from __future__ import annotations

import pytest
import torch
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity import make_choices, score
from brevitas_axe.methods.sensitivity.block_predictor import BlockPredictor, predicted
from brevitas_axe.model.prepare import as_batches, to_brevitas


class Block(nn.Module):
    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Identity())
        self.attention = nn.Linear(16, 16)
        self.mlp[0].weight.data = matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(torch.tanh(self.attention(x)))


def test_a_planted_identity_is_the_least_important() -> None:
    torch.manual_seed(0)
    turned = -torch.eye(16)
    model = nn.Sequential(Block(torch.eye(16)), Block(turned), Block(torch.randn(16, 16) / 4))
    data = [torch.randn(64, 16) for _ in range(4)]
    quantized = to_brevitas(model.eval(), as_batches(data), input_quant=Int8ActPerTensorFloat)
    choices = make_choices(quantized, (data[0],), weight=(2, 4), input=(8,))
    harm = {
        n: h.max() / 2 for n, h in score(quantized, data, choices, "block_predictor").harm.items()
    }
    assert harm["0.mlp.0"] < 0.2 < 0.5 < harm["2.mlp.0"] < 1.5 < harm["1.mlp.0"]
    assert harm["0.attention"] == harm["1.attention"] == 1
    added = score(quantized, data, choices, BlockPredictor(residual=True)).harm
    # With the input added, an identity doubles it, and its opposite leaves nothing.
    assert added["0.mlp.0"].max() < 0.4
    assert added["1.mlp.0"].max() > 1.5


def test_the_prediction_is_for_tokens_that_were_held_out() -> None:
    tokens = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    same = [predicted(tokens, torch.full((200,), 0.7), 50, seed=3) for _ in range(2)]
    assert same[0] == same[1]
    assert torch.equal(torch.get_rng_state(), before)
    assert predicted(tokens[:1], torch.ones(1), 5, seed=0) == 1
    cosines = torch.tanh(tokens[:, 0].abs())
    found = predicted(tokens, cosines, 50, seed=0)
    assert found == pytest.approx(float(cosines.mean()), abs=0.15)


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidOption, match=r"blocks='\(' is no regular expression"):
        BlockPredictor(blocks="(")
    with pytest.raises(InvalidOption, match="epochs of BlockPredictor must be at least 1"):
        BlockPredictor(epochs=0)
