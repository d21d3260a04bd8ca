"""Which kernels solve the tensors of a device."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from brevitas_axe.methods.solvers import device_kernels, kernels

# The oldest NVIDIA architecture that Triton compiles for.
OLDEST_CAPABILITY = (7, 0)


@cache
def kernels_for(device: torch.device) -> ModuleType:
    """A module with `quantize_block` and `l1_thresholds` for tensors of this device.

    numba's on the CPU, Triton's on GPUs that it supports, and torch operations elsewhere. Triton
    is imported with the first tensor on such a GPU.
    """
    if device.type == "cpu":
        return kernels
    if device.type == "cuda" and find_spec("triton") is not None:
        supported = torch.version.hip or (
            torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY
        )
        if supported:
            return import_module("brevitas_axe.methods.solvers.triton_kernels")
    return device_kernels
