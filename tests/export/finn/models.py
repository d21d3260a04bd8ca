"""The cases as models and files, and models as FINN rounds."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from brevitas.export import export_qonnx as brevitas_export_qonnx
from brevitas.graph.calibrate import calibration_mode
from brevitas.proxy import ActQuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.export import export_qonnx
from tests.export.finn.cases import Case


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    with torch.no_grad():
        model.train()(x)
        with calibration_mode(model.eval()):
            model(x)
    return model


def samples(case: Case, count: int = 8) -> Tensor:
    return torch.randn(count, *case.shape, generator=torch.Generator().manual_seed(1))


def build(case: Case) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return calibrated(case.build(), samples(case))


def write(case: Case, path: Path) -> nn.Module:
    """The case's model, and its file at path."""
    model, x = build(case), samples(case)[:1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.raw:
            brevitas_export_qonnx(model, x, export_path=str(path), dynamo=False)
        else:
            export_qonnx(model, x, path, target="qonnx")
    return model


class HalfUp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.floor(x + 0.5)


def halves_up(model: nn.Module) -> nn.Module:
    """The same net with activations rounded as FINN's thresholds do."""
    model = copy.deepcopy(model)
    for proxy in model.modules():
        if isinstance(proxy, ActQuantProxyFromInjector) and proxy.is_quant_enabled:
            quant: Any = proxy.fused_activation_quant_proxy
            if proxy.scale() is not None:
                quant.tensor_quant.int_quant.float_to_int_impl = HalfUp()
    return model
