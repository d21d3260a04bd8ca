from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.model.constant_rows import ConstantRows


@pytest.mark.parametrize("places", [(0,), (0, 1), (2,), (1, 3, 4)])
def test_fixed_rows_stand_at_their_places(places: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    x, layer = torch.randn(2, 3, 6, 4, generator=generator), nn.Linear(4, 5)
    rows = torch.arange(5.0 * len(places)).view(len(places), 5)
    module = ConstantRows(layer, places, rows)
    with torch.no_grad():
        wanted = layer(x)
        wanted[..., list(places), :] = rows
        torch.testing.assert_close(module(x), wanted)
        torch.testing.assert_close(
            torch.fx.symbolic_trace(module)(x[..., :5, :]), wanted[..., :5, :]
        )


def test_the_layer_never_sees_the_fixed_tokens() -> None:
    seen = []
    layer = nn.Linear(4, 4)
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x = torch.randn(2, 5, 4)
    ConstantRows(layer, (0, 3), torch.zeros(2, 4))(x)
    assert torch.equal(seen[0], x[:, [1, 2, 4]])
