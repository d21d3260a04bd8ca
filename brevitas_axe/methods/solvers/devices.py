"""Which kernels solve the tensors of a device."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch

from brevitas_axe.methods.solvers import descent, device_kernels, kernels

# The oldest NVIDIA architecture that Triton compiles for.
OLDEST_CAPABILITY = (7, 0)


@cache
def kernels_for(device: torch.device) -> ModuleType:
    """A module with `quantize_block` and `l1_thresholds` for tensors of this device.

    numba's on the CPU, Triton's on GPUs that it supports, and torch operations elsewhere.
    """
    if device.type == "cpu":
        return kernels
    return _of_triton("recursion") if _has_triton(device) else device_kernels


@cache
def search_for(device: torch.device) -> Callable[..., None] | None:
    """`descend` for tensors of this device; None where only the CPU has one."""
    if device.type == "cpu":
        return descent.descend
    return _of_triton("descent").descend if _has_triton(device) else None


def _has_triton(device: torch.device) -> bool:
    """Whether Triton is installed, and supports this device."""
    if device.type != "cuda" or find_spec("triton") is None:
        return False
    capability = torch.cuda.get_device_capability(device)
    return bool(torch.version.hip) or capability >= OLDEST_CAPABILITY


def _of_triton(name: str) -> ModuleType:
    """A module that imports Triton, loaded with the first tensor on such a GPU."""
    return import_module(f"brevitas_axe.methods.solvers.on_triton.{name}")
