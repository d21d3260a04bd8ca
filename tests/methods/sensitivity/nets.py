"""Small nets that the scorers are tried on."""

from __future__ import annotations

from itertools import pairwise

import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe.model.prepare import as_batches, calibrate
from tests.model.test_prepare import X

BATCHES = [X, X.flip(0), X.roll(1, 0)]


def chain(*sizes: int, bias: bool = False, seed: int = 0) -> nn.Sequential:
    """Linear layers with ReLU between them, quantized and calibrated."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [
            qnn.QuantLinear(inputs, outputs, bias=bias, input_quant=Int8ActPerTensorFloat),
            nn.ReLU(),
        ]
    model = nn.Sequential(*layers[:-1]).eval()
    calibrate(model, as_batches([torch.rand(64, sizes[0])]))
    return model
