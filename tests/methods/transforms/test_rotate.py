from __future__ import annotations

import torch
from brevitas.nn.equalized_layer import RotatedModule
from torch import nn

from brevitas_axe.methods.transforms.rotate import Rotate, rotate
from brevitas_axe.plan import LayerPrecision

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)).eval()


def test_a_single_outlier_is_spread_over_all_channels() -> None:
    model, before = net(), net()
    seen: list[torch.Tensor] = []
    assert rotate(model, [((X,), {})], LayerPrecision()) == ()
    with torch.no_grad():
        torch.testing.assert_close(model(X), before(X), atol=1e-5, rtol=1e-5)
    model[0].layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    spike = torch.zeros(1, 8)
    spike[0, 3] = 1
    with torch.no_grad():
        model(spike)
    torch.testing.assert_close(seen[0].abs(), torch.full((1, 8), 8**-0.5))


def test_excluded_layers_stay() -> None:
    model, before = net(), net()
    Rotate(exclude=("0",))(model, [((X,), {})], LayerPrecision())
    assert torch.equal(model[0].weight, before[0].weight)
    assert isinstance(model[2], RotatedModule)
