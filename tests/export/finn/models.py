"""Files of the cases."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from brevitas.export import export_qonnx as brevitas_export_qonnx
from brevitas.graph.calibrate import calibration_mode
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
