"""The log entry of a solved layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, expanded

# Columns of the second moments that are multiplied at once.
STRIP = 128


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

    solved = solution.integers * expanded(solution.scale.to(weight), problem)
    whole = _energy(weight, hessian).clamp_min(torch.finfo(torch.float64).tiny)
    return {
        "inputs": problem.columns,
        "outputs": weight.shape[0] * weight.shape[1],
        "error_rounded": (_energy(rounded - weight, hessian) / whole).item(),
        "error": (_energy(solved - weight, hessian) / whole).item(),
        "budget_used": _budget_used(problem, solution.integers),
    }


def _energy(value: Tensor, hessian: Tensor) -> Tensor:
    """The sum of v H v over rows v of value [groups, rows, K], float64.

    Columns of the symmetric H are multiplied with themselves and with those behind them, once.
    """
    total = value.new_zeros((), dtype=torch.float64)
    for start in range(0, value.shape[-1], STRIP):
        stop = start + STRIP
        strip = value[..., start:stop]
        product = strip @ hessian[:, start:stop, start:stop]
        product += 2 * (value[..., stop:] @ hessian[:, stop:, start:stop])
        total += torch.linalg.vecdot(strip, product).sum(dtype=torch.float64)
    return total


def _budget_used(problem: LayerProblem, integers: Tensor) -> float | None:
    if problem.unlimited:
        return None
    # max(above, -below) = (sum |q| (high - low) + |sum q (high + low)|) / 2 of each tile.
    low, high = (bound.double().unsqueeze(-1) for bound in problem.counted_range)
    members = F.one_hot(problem.tile_of_column).double()
    q = integers.double()
    sums = q.abs() @ ((high - low) * members) + (q @ ((high + low) * members)).abs()
    return (sums / (2 * problem.tile_limits.clamp_min(1))).max().item()
