"""The log entry of a solved layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, expanded


def describe(problem: LayerProblem, solution: LayerSolution) -> dict[str, float | int | None]:
    """Errors and budget of one layer.

    Returns:
        error_rounded: ||(W - round(W)) X~||^2 / ||W X~||^2, what rounding to the nearest integer
            would lose, with no limit on the accumulator.
        error: the same for the solution.
        budget_used: largest worst-case sum divided by the largest number of its accumulator; None
            without a limit.
    """
    weight, hessian = problem.weight.detach().to(problem.dtype), problem.hessian.to(problem.dtype)
    scale = expanded(problem.scale.to(weight), problem)
    low, high = problem.weight_range
    rounded = (weight / scale).round().clamp(low, high) * scale

    def energy(value: Tensor) -> Tensor:
        return torch.linalg.vecdot(value, value @ hessian).sum(dtype=torch.float64)

    whole = energy(weight).clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "inputs": problem.columns,
        "outputs": weight.shape[0] * weight.shape[1],
        "error_rounded": (energy(rounded - weight) / whole).item(),
        "error": (energy(solution.value(problem).to(weight) - weight) / whole).item(),
        "budget_used": _budget_used(problem, solution.integers),
    }


def _budget_used(problem: LayerProblem, integers: Tensor) -> float | None:
    if problem.unlimited:
        return None
    # max(above, -below) = (sum |q| (high - low) + |sum q (high + low)|) / 2 of each tile.
    low, high = (bound.double().unsqueeze(-1) for bound in problem.counted_range)
    members = F.one_hot(problem.tile_of_column).double()
    q = integers.double()
    sums = q.abs() @ ((high - low) * members) + (q @ ((high + low) * members)).abs()
    return (sums / (2 * problem.tile_limits.clamp_min(1))).max().item()
