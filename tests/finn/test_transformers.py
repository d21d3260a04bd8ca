"""FINN builds a whole vision transformer: matrix units for both products of attention, too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from qonnx.core.datatype import DataType

from brevitas_axe.export import export_qonnx
from tests.export.finn.vit import PRODUCTS, P, pictures, solved
from tests.finn.runner import through_finn

# GELU has units on Versal devices alone; with thresholds of their own, matrix units are RTL.
_OPTIONS = {
    "recipe": "transformer",
    "part": "xcvc1902-vsva2197-2MP-e-S",
    "standalone_thresholds": True,
    "stages": ["streamlined", "minimized"],
}


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_finn_builds_the_whole_net_within_the_accumulator(tmp_path: Path) -> None:
    model, x, path = solved().model, pictures(2), tmp_path / "vit.onnx"
    export_qonnx(model, x[:1], path)
    finn = through_finn(path, tmp_path / "finn", x.numpy(), **_OPTIONS)
    assert not finn.errors
    # What is left to the host turns the image, in front of everything else.
    [left] = finn.unmapped
    assert left.startswith("Transpose")
    units = finn.matrix_units
    assert len(units) == PRODUCTS
    assert sum(unit["attributes"]["mem_mode"] == "dynamic" for unit in units) == 2
    for unit in units[:-1]:  # the last one is rounded up to whole bytes
        assert DataType[unit["attributes"]["accDataType"]].bitwidth() <= P
    with torch.no_grad():
        expected = model(x).numpy()
    for stage in _OPTIONS["stages"]:
        found = finn.outputs[stage].reshape(expected.shape)
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), stage
