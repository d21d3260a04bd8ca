from __future__ import annotations

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from brevitas_axe.methods.transforms.linears import linears
from brevitas_axe.plan import LayerPrecision


def test_conv1d_becomes_a_linear_layer_of_the_same_numbers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(6, 4), nn.Linear(6, 3))
    kept, x = model[1], torch.randn(2, 4)
    with torch.no_grad():
        wanted = model(x)
        assert linears(model, [((x,), {})], LayerPrecision()) == ()
        torch.testing.assert_close(model(x), wanted)
    assert type(model[0]) is nn.Linear
    assert model[1] is kept
