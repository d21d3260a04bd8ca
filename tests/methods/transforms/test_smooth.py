from __future__ import annotations

import copy

import pytest
import torch
from brevitas.nn.equalized_layer import EqualizedModule
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.smooth import Smooth, smooth
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

X = torch.randn(4, 6, 8, generator=torch.Generator().manual_seed(0))
X[..., 3] *= 50
CALLS = [((X,), {}), ((X[:, :2],), {})]  # sequences of two lengths


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4))


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_the_factors_are_those_of_the_paper(strength: float) -> None:
    model, before = net(), net()
    with torch.no_grad():
        wanted = model(X)
    assert method("transforms", f"smooth:strength={strength}")(model, CALLS, LayerPrecision()) == ()
    with torch.no_grad():
        torch.testing.assert_close(model(X), wanted, atol=1e-5, rtol=1e-5)
    weight = before[0].weight.detach()
    largest = X.abs().amax((0, 1)) ** strength
    factors = largest / weight.abs().amax(0) ** (1 - strength)
    torch.testing.assert_close(model[0].layer.weight.detach(), weight * factors)


def test_excluded_layers_stay() -> None:
    model = net()
    before = copy.deepcopy(model[2])
    Smooth(exclude=("2",))(model, CALLS, LayerPrecision())
    assert isinstance(model[0], EqualizedModule)
    assert type(model[2]) is nn.Linear
    assert torch.equal(model[2].weight, before.weight)


def test_a_strength_outside_is_named() -> None:
    with pytest.raises(InvalidOption, match=r"between 0 and 1, but it is 1\.5"):
        method("transforms", "smooth:strength=1.5")
    assert smooth.strength == 0.5
