"""Compiling the kernels ahead of their first use, so that a caller can show that it takes time."""

from __future__ import annotations

import time

import torch

from brevitas_axe.methods.solvers import gptq
from brevitas_axe.methods.solvers.descent import descend
from brevitas_axe.methods.solvers.kernels import l1_thresholds, quantize_block
from brevitas_axe.methods.solvers.problem import LayerProblem


def kernels_are_ready() -> bool:
    """Whether this process has every kernel, compiled or read from numba's cache on disk."""
    return all(kernel.signatures for kernel in (quantize_block, l1_thresholds, descend))


def compile_kernels() -> float:
    """Compiles the kernels for float32 by solving a tiny layer; returns the seconds it took."""
    begun = time.perf_counter()
    problem = LayerProblem(
        weight=torch.ones(1, 1, 2),
        hessian=torch.eye(2)[None],
        scale=torch.ones(1, 1),
        weight_low=-1,
        weight_high=1,
        input_low=0,
        input_high=1,
        accumulator_bit_width=4,
    )
    gptq.gptq(problem, quality="best")
    return time.perf_counter() - begun
