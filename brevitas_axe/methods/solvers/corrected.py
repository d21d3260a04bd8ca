"""Error diffusion towards the optimum for the quantized inputs.

The weights w are first moved to w* = w + w (G - H)^T (H + d I)^-1, which minimizes
||w X - w* X~||^2 + n d ||w - w*||^2 and so corrects the errors of earlier layers; then the error of
each column is spread over those not yet decided, as by OPTQ (Qronos, arXiv 2505.11695).
"""

from __future__ import annotations

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.factor import damped_factor
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.solvers.sequential import (
    Recursion,
    columns_first,
    reordered,
    storage_order,
)


def corrected_recursion(
    problem: LayerProblem, act_order: bool, damping: Tensor, plain_first: bool = False
) -> tuple[Recursion, Tensor]:
    """The recursion, stored in reverse like that of gptq.py.

    Prepared in float64: little damping leaves float32 no correct digit where inputs are correlated.

    Args:
        problem: the layer.
        act_order: columns are decided by descending second moment of their input.
        damping: d, [groups].
        plain_first: whether the column decided first starts from its optimum beside the float
            weights, instead of from w*, as in the authors' Qronos.

    Returns:
        (the recursion, the damping that was used [groups]): more than asked for where the moments
        are numerically singular.
    """
    order = storage_order(problem, act_order, backward=True)
    hessian = reordered(problem.hessian, order, torch.float64)
    weight = columns_first(problem.weight, order, torch.float64)
    factor, damping = damped_factor(hessian, damping.double())
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    base = target = weight
    if problem.cross is not None:
        # Subtracted before anything is multiplied: the two are nearly equal.
        drift = reordered(problem.cross - problem.hessian, order, torch.float64) @ weight
        base = target = weight + torch.cholesky_solve(drift, factor, upper=True)
        if plain_first:
            base = target.clone()
            base[:, -1] = weight[:, -1] + drift[:, -1] / diagonal[:, -1:].clamp_min(1e-30)
    pivot = factor.diagonal(dim1=-2, dim2=-1).masked_fill(diagonal == 0, 0)
    factor, pivot, base, target = (
        matrix.to(problem.dtype) for matrix in (factor, pivot, base, target)
    )
    return Recursion(order, True, factor, pivot, base, target), damping
