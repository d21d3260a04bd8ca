"""A plain CNN that never heard of FINN goes all the way through it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from brevitas_axe import export_qonnx, quantize
from brevitas_axe.export import prepare_for_finn
from brevitas_axe.model.layers import find_layers
from tests.export.finn.plain import images, trained
from tests.finn.runner import through_finn

BITS = 12


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_plain_residual_net_is_built_and_computes_the_same(tmp_path: Path) -> None:
    x, path = images(64), tmp_path / "model.onnx"
    prepared = prepare_for_finn(trained("residual"), [x])
    model = quantize(prepared, [x], accumulator_bit_width=BITS, progress=False).model
    export_qonnx(model, x[:1], path)
    finn = through_finn(
        path, tmp_path / "finn", x[:8].numpy(), stages=["minimized"], recipe="resnet"
    )
    assert not finn.errors
    assert finn.unmapped in ([], ["Transpose_0"])
    assert len(finn.matrix_units) == len(find_layers(model))
    with torch.no_grad():
        expected = model(x[:8]).numpy()
    assert np.abs(finn.outputs["minimized"].reshape(expected.shape) - expected).max() < 1e-4
