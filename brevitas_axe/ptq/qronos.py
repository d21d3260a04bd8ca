"""Qronos, with or without an accumulator budget.

Zhang et al., "Qronos: Correcting the Past by Shaping the Future" (arXiv 2505.11695): the weights
are first moved to the optimum for the quantized inputs, w* = w G^T H^-1, which also corrects the
errors of earlier layers; then the error of each column is spread as by OPTQ.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brevitas_axe.ptq.factor import damped_factor
from brevitas_axe.ptq.levels import finish
from brevitas_axe.ptq.problem import LayerProblem, LayerSolution
from brevitas_axe.ptq.sequential import Recursion, columns_first, reordered, storage_order

# Damping as a share of the largest eigenvalue, as in the authors' code.
DAMPING = 1e-6
POWER_ITERATIONS = 30


def solve(
    problem: LayerProblem, *, act_order: bool = False, quality: str = "fast"
) -> LayerSolution:
    """Quantizes a layer by Qronos; see `brevitas_axe.ptq.Solver`."""
    return finish(problem, recursion(problem, act_order), quality)


def recursion(problem: LayerProblem, act_order: bool) -> Recursion:
    """Qronos as a recursion over columns, stored in reverse (see gptq.py).

    In float64: damping this small leaves float32 no correct digit where inputs are correlated.
    """
    order = storage_order(problem, act_order, backward=True)
    hessian = reordered(problem.hessian, order, torch.float64)
    weight = columns_first(problem.weight, order, torch.float64)
    factor, _ = damped_factor(hessian, DAMPING * _largest_eigenvalue(hessian))
    target = weight
    base = weight
    if problem.cross is not None:
        cross = reordered(problem.cross, order, torch.float64)
        target = weight + torch.cholesky_solve((cross - hessian) @ weight, factor, upper=True)
        # The column decided first is not moved to w*, but to its optimum beside the float others.
        base = target.clone()
        first = hessian[:, -1, -1, None].where(hessian[:, -1, -1, None] != 0, torch.tensor(1.0))
        gradient = ((cross - hessian)[:, -1:] @ weight).squeeze(1)
        base[:, -1] = weight[:, -1] + gradient / first
    dead = hessian.diagonal(dim1=-2, dim2=-1) == 0
    pivot = factor.diagonal(dim1=-2, dim2=-1).masked_fill(dead, 0)
    matrices = (matrix.to(problem.dtype) for matrix in (factor, pivot, base, target))
    return Recursion(order, True, *matrices)


def _largest_eigenvalue(moments: Tensor) -> Tensor:
    """[groups] of [groups, K, K], by power iteration."""
    vector = torch.ones(moments.shape[0], moments.shape[1], 1, dtype=moments.dtype)
    for _ in range(POWER_ITERATIONS):
        vector = moments @ (vector / vector.norm(dim=1, keepdim=True).clamp_min(1e-30))
    return vector.norm(dim=(1, 2))
