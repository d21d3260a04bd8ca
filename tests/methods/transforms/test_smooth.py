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


class Images(nn.Module):
    """Convolutions of one and two dimensions, one of them for every channel by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.full = nn.Conv2d(3, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, groups=6)
        self.line = nn.Conv1d(6, 4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(torch.relu(self.depthwise(self.full(x))).flatten(2))


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_channels_of_images_are_not_their_columns(strength: float) -> None:
    generator = torch.Generator().manual_seed(1)
    # As many columns as channels, for which the one could be taken for the other; two sizes.
    sizes = [(2, 3, 6, 6), (1, 3, 7, 3)]
    batches = [torch.randn(*size, generator=generator).double() for size in sizes]
    for x in batches:
        x[:, 1] *= 30
    torch.manual_seed(0)
    model = Images().double().eval()
    before = copy.deepcopy(model)
    with torch.no_grad():
        wanted = [model(x) for x in batches]
    Smooth(strength)(model, [((x,), {}) for x in batches], LayerPrecision())
    with torch.no_grad():
        for x, y in zip(batches, wanted, strict=True):
            torch.testing.assert_close(model(x), y, atol=1e-12, rtol=1e-12)
    assert all(isinstance(part, EqualizedModule) for part in model.children())
    largest = torch.stack([x.abs().amax((0, 2, 3)) for x in batches]).amax(0) ** strength
    weight = before.full.weight.detach().abs().amax((0, 2, 3)) ** (1 - strength)
    factors = model.full.layer.weight / before.full.weight
    # Brevitas computes its factors in float32.
    torch.testing.assert_close(
        factors, (largest / weight).view(1, 3, 1, 1).expand_as(factors), rtol=1e-6, atol=0
    )
