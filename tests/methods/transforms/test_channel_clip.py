from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.channel_clip import (
    ChannelClip,
    channel_clip,
    clipped,
    reparametrized,
)
from brevitas_axe.methods.transforms.fold import apply_change
from brevitas_axe.methods.transforms.protocol import Change
from brevitas_axe.methods.transforms.rounding_error import output_error
from brevitas_axe.methods.transforms.sites import find_sites
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

BITS = 4
WIDTHS = LayerPrecision(weight=4, input=BITS)


def case() -> tuple[nn.Sequential, torch.Tensor]:
    """A layer norm with channels of different size and place, and its reader."""
    generator = torch.Generator().manual_seed(2)
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 8)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
        model[0].weight.mul_(torch.logspace(-1, 1, 16))
        model[0].bias.mul_(torch.logspace(1, -1, 16))
    return model, torch.randn(400, 16, generator=generator, dtype=torch.float64)


MODEL, X = case()
CALLS = [((X,), {})]
[SITE] = find_sites(MODEL, CALLS)


def test_the_formulas_are_those_of_repq_but_for_the_zero_point() -> None:
    """RepQ-ViT, classification/test_quant.py, with 2^(N-1) in place of the mean zero point."""
    model = copy.deepcopy(MODEL)
    apply_change(model, SITE, reparametrized(SITE.low, SITE.high, BITS))
    delta = (SITE.high - SITE.low) / (2**BITS - 1)
    r = delta / delta.mean()
    b = SITE.low / r + 2 ** (BITS - 1) * delta.mean()
    weight, bias = MODEL[0].weight, MODEL[0].bias
    torch.testing.assert_close(model[0].weight, weight / r, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[0].bias, bias / r - b, rtol=1e-12, atol=1e-12)
    scaled = MODEL[1].weight * r
    torch.testing.assert_close(model[1].weight, scaled, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model[1].bias, MODEL[1].bias + scaled @ b, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(model(X), MODEL(X), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("percent", [0.0, 5.0])
def test_one_grid_has_the_codes_of_a_grid_per_channel(percent: float) -> None:
    low, high = clipped(SITE.low, SITE.high, percent)
    change = reparametrized(low, high, BITS)
    model = copy.deepcopy(MODEL)
    apply_change(model, SITE, change)
    delta = (high - low) / (2**BITS - 1)
    x, folded = MODEL[0](X), model[0](X)
    # Away from ties, which the two ways to compute may round differently.
    position = (x - low) / delta
    certain = (position - position.floor() - 0.5).abs() > 1e-9
    channels = position.round().clamp(0, 2**BITS - 1)
    half = 2 ** (BITS - 1)
    tensor = (folded / delta.mean()).round().clamp(-half, half - 1) + half
    assert torch.equal(channels[certain], tensor[certain])
    assert certain.float().mean() > 0.999
    if percent == 0:  # every channel has the whole grid
        assert tensor.amin(0).max() == 0
        assert tensor.amax(0).min() == 2**BITS - 1
    else:
        assert ((tensor == 0) | (tensor == 2**BITS - 1)).sum() > (channels == 0).sum() / 2


def test_bounds_are_clipped_to_percentiles_of_all_channels() -> None:
    low, high = -torch.arange(101.0), torch.arange(101.0)
    low5, high5 = clipped(low, high, 5)
    assert low5.min() == -95
    assert high5.max() == 95
    assert torch.equal(low5[:96], low[:96].double())
    assert torch.equal(clipped(low, high, 0)[0], low.double())
    far = torch.cat([high, torch.tensor([500.0])])  # a channel from 400 to 500
    lows = torch.cat([low, torch.tensor([400.0])])
    assert [float(bound[-1]) for bound in clipped(lows, far, 5)] == [400, 500]


def test_the_percentage_of_least_error_is_taken_and_nothing_where_none_helps() -> None:
    found = channel_clip.change(SITE, WIDTHS)
    assert found is not None
    tried = [
        reparametrized(*clipped(SITE.low, SITE.high, p), BITS) for p in (0.0, 0.5, 1.0, 2.0, 5.0)
    ]
    errors = [output_error(SITE, change, WIDTHS) for change in tried]
    assert output_error(SITE, found, WIDTHS) == min(errors)
    assert min(errors) < output_error(SITE, Change(), WIDTHS)
    assert channel_clip.change(SITE, LayerPrecision(weight=4)) is None


def test_a_constant_channel_does_no_harm() -> None:
    low, high = torch.zeros(4), torch.tensor([1.0, 2.0, 0.0, 1.0])
    change = reparametrized(low, high, BITS)
    assert change.scale is not None
    assert bool((change.scale > 0).all() and change.scale.isfinite().all())
    assert reparametrized(low, low, BITS).scale is None


@pytest.mark.parametrize("percents", ["", "50", "-1"])
def test_percentages_that_cannot_be_are_named(percents: str) -> None:
    with pytest.raises(InvalidOption, match="at least 0 and below 50"):
        method("transforms", f"channel_clip:percents={percents}")
    assert method("transforms", "channel_clip:percents=0;3") == ChannelClip((0.0, 3.0))
