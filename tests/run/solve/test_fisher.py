"""Weights of squared errors by the Fisher information."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.pieces import cut
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.solve.fisher import fisher_weights
from tests.run.tiny import batches, tiny


def of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    pieces = cut(model, ["0"], whole=True)
    [[[found]]] = fisher_weights(pieces, model, [((x,), {})], torch.Generator().manual_seed(0))
    return found


def test_at_the_outputs_their_mean_is_the_variance_of_the_labels() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4)).eval()
    sample = torch.randn(1, 3)
    found = of(model, sample.expand(20_000, 3)).mean(0)
    chance = model(sample).softmax(-1).detach()[0]
    # Every sample is the same, so that the mean of the squares is p (1 - p).
    expected = chance * (1 - chance)
    torch.testing.assert_close(found, expected / expected.mean(), rtol=0.05, atol=0.02)


def test_a_model_that_says_the_same_of_all_has_even_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 1)).eval()
    assert torch.equal(of(model, torch.randn(5, 2)), torch.ones(5, 1))


def test_blocks_solved_one_at_a_time_refuse_it_before_any_work() -> None:
    with pytest.raises(InvalidOption, match="one block at a time; take loss=mse"):
        quantize_blocks(
            tiny("llama"), batches("llama"), solver="learned_rounding:scope=block,loss=fisher"
        )
