"""Brevitas's own exports and its inference mode give what the model computes, held integers."""

from __future__ import annotations

import warnings

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from brevitas import nn as qnn
from brevitas.export import export_onnx_qcdq, export_qonnx, export_torch_qcdq
from brevitas.export.inference.manager import quant_inference_mode
from brevitas.quant import Uint8ActPerTensorFloat
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.infer_shapes import InferShapes
from torch import nn

from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFloatAXE,
    Int8WeightPerTileFloatAXE,
)

X = torch.rand(3, 16, generator=torch.Generator().manual_seed(0))
QUANTIZERS = {
    "channel": {"weight_quant": Int8WeightPerChannelFloatAXE},
    "tensor": {"weight_quant": Int8WeightPerTensorFloatAXE},
    "tile": {
        "weight_quant": Int8WeightPerTileFloatAXE,
        "weight_group_size": 4,
        "weight_accumulator_tile_size": 4,
    },
}


def held_model(kind: str) -> nn.Module:
    """A net whose accumulators are so narrow that rounding alone would overflow them."""
    torch.manual_seed(0)
    more = {"weight_bit_width": 6, "weight_accumulator_bit_width": 12, **QUANTIZERS[kind]}
    model = nn.Sequential(
        qnn.QuantIdentity(Uint8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantLinear(16, 8, bias=True, **more),
        qnn.QuantReLU(bit_width=6, return_quant_tensor=True),
        qnn.QuantLinear(8, 5, bias=True, **more),
    )
    with torch.no_grad():
        model(X)
    return model.eval()


def of_qonnx(model: nn.Module, path: str) -> np.ndarray:
    export_qonnx(model, X, export_path=path, dynamo=False)
    file = ModelWrapper(path).transform(InferShapes())
    return next(iter(execute_onnx(file, {_input(path): X.numpy()}).values()))


def of_onnx_qcdq(model: nn.Module, path: str, **more) -> np.ndarray:
    export_onnx_qcdq(model, X, export_path=path, dynamo=False, **more)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {_input(path): X.numpy()})[0]


def of_onnx_qcdq_nodes(model: nn.Module, path: str) -> np.ndarray:
    return of_onnx_qcdq(model, path, export_weight_q_node=True)


def of_torch_qcdq(model: nn.Module, path: str) -> np.ndarray:
    return export_torch_qcdq(model, X, export_path=path)(X).numpy()


def of_inference(model: nn.Module, path: str, **more) -> np.ndarray:
    with torch.no_grad(), quant_inference_mode(model, **more):
        model(X)
        return model(X).numpy()


def of_cached_inference(model: nn.Module, path: str) -> np.ndarray:
    return of_inference(model, path, cache_quant_weight=True)


def _input(path: str) -> str:
    proto = onnx.load(path)
    constants = {tensor.name for tensor in proto.graph.initializer}
    return next(i.name for i in proto.graph.input if i.name not in constants)


EXITS = (
    *(of_qonnx, of_onnx_qcdq, of_onnx_qcdq_nodes, of_torch_qcdq),
    *(of_inference, of_cached_inference),
)


@pytest.mark.parametrize("leave", EXITS)
@pytest.mark.parametrize("kind", QUANTIZERS)
def test_what_leaves_is_what_the_model_computes(kind, leave, tmp_path) -> None:
    model = held_model(kind)
    with torch.no_grad():
        expected = model(X)
    with warnings.catch_warnings(action="ignore"):
        given = leave(model, str(tmp_path / "model"))
    assert np.allclose(given, expected.numpy(), atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(X), expected)
    assert not any(getattr(module, "export_mode", False) for module in model.modules())
    model.train()(X).sum().backward()
    assert model[1].weight.grad is not None
