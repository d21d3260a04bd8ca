"""FINN builds both nets of the fires, with accumulators no wider than is proven."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from brevitas_axe import certify_file, check_finn, export_qonnx, quantize
from brevitas_axe.applications.wildfire.data import drawn
from brevitas_axe.applications.wildfire.nets import Classifier, UNet
from brevitas_axe.export.finn.prepare import made_for_finn
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import as_batches
from tests.finn.layers import accumulator_bits
from tests.finn.runner import through_finn

BITS, SIZE = 12, 16
# The nets of `brevitas-axe wildfire` with fewer channels, and FINN's steps for them.
NETS = {"classifier": (Classifier, 8, "resnet"), "unet": (UNet, 4, "unet")}


def solved(task: str) -> tuple[nn.Module, torch.Tensor]:
    """A net at W4A4 and 12 bits, and the pictures that calibrated it."""
    torch.manual_seed(0)
    make, channels, _ = NETS[task]
    x = drawn(task, SIZE, 32, seed=0).training.images
    batches = as_batches([x])
    prepared = made_for_finn(make(channels).eval(), batches, 4, 4, 8)
    result = quantize(prepared, [x], accumulator_bit_width=BITS, quality="fast", progress=False)
    return result.model, x


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("task", NETS)
def test_a_net_of_the_fires_is_built(task: str, tmp_path: Path) -> None:
    model, x = solved(task)
    path = tmp_path / "model.onnx"
    export_qonnx(model, x[:1], path)
    certificate = certify_file(path, BITS)
    assert certificate.ok
    assert {found.severity for found in check_finn(path)} <= {"note"}
    recipe = NETS[task][-1]
    finn = through_finn(path, tmp_path / "finn", x[:1].numpy(), stages=["minimized"], recipe=recipe)
    assert not finn.errors
    assert finn.unmapped in ([], ["Transpose_0"])  # of the picture, which arrives channels first
    assert len(finn.matrix_units) == len(find_layers(model))
    proven = max(entry.width or 0 for entry in certificate.judged)
    widths = [accumulator_bits(finn.weights[unit["name"]], unit) for unit in finn.matrix_units]
    assert max(widths) <= proven <= BITS
    with torch.no_grad():
        expected = model(x[:1]).numpy()
    assert np.abs(finn.outputs["minimized"].reshape(expected.shape) - expected).max() < 1e-4
