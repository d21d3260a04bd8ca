"""FINN builds the linear layers of a solved transformer, each from a file of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from qonnx.core.datatype import DataType
from torch import nn

from brevitas_axe.export.layers import export_layers
from brevitas_axe.model.layers import integer_weight
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.finn.layers import match
from tests.finn.runner import through_finn
from tests.run.tiny import batches, tiny

BITS = 14


@pytest.mark.finn
def test_finn_builds_a_linear_layer(tmp_path: Path) -> None:
    float_model = tiny("opt")
    for module in float_model.modules():
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.normal_(module.bias, std=0.5)  # transformers starts with zeros
    data = batches("opt")
    model = quantize_blocks(float_model, data, accumulator_bit_width=BITS, progress=False).model
    name = "model.decoder.layers.0.fc1"
    path = export_layers(model, tmp_path, [name])[name]
    layer = model.get_submodule(name)
    x = 3 * torch.randn(16, 32, generator=torch.Generator().manual_seed(1))
    finn = through_finn(path, tmp_path / "finn", x.numpy(), stages=["minimized"])
    assert not finn.errors
    assert finn.unmapped == []
    unit = match(finn, {name: integer_weight(name, layer)[0].numpy()}, model)[name]
    assert unit["attributes"]["numInputVectors"] == [1]
    assert DataType[unit["attributes"]["accDataType"]].bitwidth() <= BITS
    with torch.no_grad():
        expected = layer(x).numpy()
    assert np.abs(finn.outputs["minimized"].reshape(expected.shape) - expected).max() < 1e-4
