"""What pruning a layer costs."""

from __future__ import annotations

import torch
from torch import nn

from brevitas_axe.methods.sensitivity import (
    make_choices,
    score,
)
from brevitas_axe.methods.sensitivity.pmpq import pmpq
from brevitas_axe.model.layers import Layer
from tests.methods.sensitivity.nets import chain


def test_a_layer_of_zeros_loses_nothing_by_pruning() -> None:
    model = chain(8, 8, 8, 4)
    emptied: Layer = model[2]
    emptied.weight.data.zero_()
    emptied.bias = nn.Parameter(torch.rand(8))
    x = torch.rand(32, 8)
    scores = score(model, [x], make_choices(model, (x[:1],)), pmpq)
    assert scores.harm["2"].max() == 0
    assert scores.harm["4"].max() > 0
