"""Linear layers of a block as QONNX: what the file computes is what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from brevitas_axe import certify_file
from brevitas_axe.blocks import BlocksResult, export_layers, quantize_blocks
from brevitas_axe.errors import ExportRefused, InvalidOption
from tests.blocks.tiny import LAYERS, batches, tiny


def solved(**options) -> BlocksResult:
    widths = {"accumulator_bit_width": 14, "quality": "fast", "progress": False}
    return quantize_blocks(tiny("opt"), batches("opt"), **widths, **options)


def test_files_run_as_torch_does_and_prove_themselves(tmp_path: Path) -> None:
    model = solved().model
    block = [name for name, _ in model.named_modules() if name.startswith("model.decoder.layers.0")]
    names = [name for name in block if name.rpartition(".")[2] in ("q_proj", "fc1", "fc2")]
    files = export_layers(model, tmp_path, names)
    assert list(files) == names
    for name, path in files.items():
        layer = model.get_submodule(name)
        graph = ModelWrapper(str(path))
        shape = graph.get_tensor_shape(graph.graph.input[0].name)
        assert shape is not None
        x = 3 * torch.randn(*shape)
        feed = {graph.graph.input[0].name: x.numpy()}
        [output] = execute_onnx(graph, feed).values()
        with torch.no_grad():
            expected = layer(x).numpy()
        np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)
        certificate = certify_file(path, accumulator_bit_width=14).require()
        assert [entry.layer for entry in certificate.entries] == [name]


def test_all_layers_are_written_where_none_is_named(tmp_path: Path) -> None:
    files = export_layers(solved().model, tmp_path)
    assert len(files) == 2 * LAYERS["opt"]
    assert all(path.exists() for path in files.values())


def test_scales_found_at_run_time_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportRefused, match="activations='static'"):
        export_layers(solved(activations="per_token").model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_unknown_layers_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidOption, match="'lm_head' is no quantized layer"):
        export_layers(solved().model, tmp_path, ["lm_head"])
