"""Linear layers of a block as QONNX: what the file computes is what torch computes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from brevitas_axe import certify_file, export_qonnx
from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export import qonnx
from brevitas_axe.export.layers import export_layers, on_cpu
from brevitas_axe.model.layers import find_layers
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.result import BlocksResult
from tests.elsewhere import Elsewhere, ElsewhereTensor
from tests.run.tiny import LAYERS, batches, tiny


def solved(**options) -> BlocksResult:
    widths = {"accumulator_bit_width": 14, "quality": "fast", "progress": False}
    return quantize_blocks(tiny("opt"), batches("opt"), **widths, **options)


def check_outputs(path: Path, layer: nn.Module) -> None:
    """The file takes one vector at a time, and gives for each what the layer gives for all."""
    graph = ModelWrapper(str(path))
    entry = graph.graph.input[0].name
    shape = graph.get_tensor_shape(entry)
    assert shape is not None
    assert shape[0] == 1
    x = 3 * torch.randn(32, shape[1])
    found = [execute_onnx(graph, {entry: v[None]}) for v in x.numpy()]
    with torch.no_grad():
        expected = layer(x).numpy()
    output = np.concatenate([value for outputs in found for value in outputs.values()])
    np.testing.assert_allclose(output, expected, rtol=1e-5, atol=1e-5)


class There(ElsewhereTensor):
    """A parameter or buffer on another device, which can be copied."""

    def __deepcopy__(self, memo: dict) -> Any:
        return placed(self.held, isinstance(self, nn.Parameter))


def placed(value: Tensor, parameter: bool) -> Any:
    there: Any = There(value.detach().clone())
    there._is_param = parameter  # what nn.Parameter itself sets on tensors of other classes
    return there


def moved(model: nn.Module) -> nn.Module:
    """A copy whose tensors say that they lie on another device."""
    model = copy.deepcopy(model)
    for module in model.modules():
        # Not by setattr, at which Brevitas would build its quantizers anew.
        for values in (module._parameters, module._buffers):
            for name, value in values.items():
                if value is not None:
                    values[name] = placed(value, isinstance(value, nn.Parameter))
    return model


def test_files_run_as_torch_does_and_prove_themselves(tmp_path: Path) -> None:
    model = solved().model
    block = [name for name, _ in model.named_modules() if name.startswith("model.decoder.layers.0")]
    names = [name for name in block if name.rpartition(".")[2] in ("q_proj", "fc1", "fc2")]
    files = export_layers(model, tmp_path, names)
    assert list(files) == names
    for name, path in files.items():
        check_outputs(path, model.get_submodule(name))
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
        export_layers(solved().model, tmp_path, ["model.decoder.layers.0.fc1", "lm_head"])
    assert not list(tmp_path.iterdir())


def test_blocks_on_the_disk_give_the_same_files(tmp_path: Path) -> None:
    name = "model.decoder.layers.1.fc1"
    result = solved(offload=tmp_path / "blocks")
    layer = result.model.get_submodule(name)
    here = export_layers(solved().model, tmp_path / "here", [name])
    there = export_layers(result.model, tmp_path / "there", [name])
    assert there[name].read_bytes() == here[name].read_bytes()
    check_outputs(there[name], on_cpu(layer))
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    with torch.no_grad():
        result.model(batches("opt")[0])


def test_layers_of_another_device_give_the_same_files(tmp_path: Path, monkeypatch) -> None:
    # A stand-in's data cannot be set to those of a tensor on the CPU.
    overwrite = "get_overwrite_module_params_on_conversion"
    monkeypatch.setattr(torch.__future__, overwrite, lambda: True)
    name = "model.decoder.layers.0.fc1"
    model = solved().model
    here = export_layers(model, tmp_path / "here", [name])
    there = export_layers(moved(model), tmp_path / "there", [name])
    assert there[name].read_bytes() == here[name].read_bytes()


def test_whole_models_of_another_device_are_exported(tmp_path: Path, monkeypatch) -> None:
    torch.manual_seed(0)
    quant = {"weight_bit_width": 4, "input_quant": Int8ActPerTensorFloat}
    here = nn.Sequential(qnn.QuantLinear(6, 5, bias=True, **quant))
    x = torch.randn(1, 6)
    here(x)
    here.eval()
    export_qonnx(here, x, tmp_path / "here.onnx")
    layers = find_layers(here)
    solution, trace = qonnx.solved_weights(layers), qonnx._trace

    def trace_here(_: nn.Module, args: tuple, *rest) -> None:
        # The tracer is torch's own, and knows real devices only.
        with _disable_current_modes(), qonnx._integer_exact_weights(layers, solution):
            trace(here, (x,), *rest)

    monkeypatch.setattr(qonnx, "_trace", trace_here)
    with Elsewhere():
        export_qonnx(moved(here), ElsewhereTensor(x), tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


@pytest.mark.filterwarnings("ignore:fast_hadamard_transform package not found:UserWarning")
def test_the_host_rotates_and_scales_before_the_file(tmp_path: Path) -> None:
    model = solved(rotate=True, smooth=0.5).model
    name = next(name for name in find_layers(model) if "layers.0.fc1" in name)
    path = export_layers(model, tmp_path, [name])[name]
    check_outputs(path, model.get_submodule(name))
    nodes = {node.op_type for node in ModelWrapper(str(path)).graph.node}
    assert nodes <= {"Quant", "MatMul", "Add", "Transpose"}
