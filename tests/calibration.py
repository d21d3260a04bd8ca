"""Calibrated models for tests."""

from __future__ import annotations

from typing import Any

import torch
from brevitas.graph.calibrate import calibration_mode
from torch import Tensor, nn


def calibrated(model: nn.Module, x: Tensor) -> Any:
    """The model in evaluation mode, its activations calibrated on x and seen by its layers."""
    model.eval()
    with torch.no_grad(), calibration_mode(model):
        model(x)
    with torch.no_grad():
        model(x)
    return model
