"""A solution that begins from weights on the grid, instead of from a column-by-column solve."""

from __future__ import annotations

import torch

from brevitas_axe.methods.solvers.best import MOVE_BUDGET
from brevitas_axe.methods.solvers.local_search import improve_integers
from brevitas_axe.methods.solvers.problem import (
    LayerProblem,
    LayerSolution,
    Quality,
    about_means,
    with_bias_shift,
)
from brevitas_axe.methods.solvers.within_budget import better, rounded


@torch.no_grad()
def from_start(problem: LayerProblem, quality: Quality) -> LayerSolution:
    """Weights rounded to nearest at the start scale, within the budget; "best" searches on.

    Integers whose values the weights already have are the ones that the search begins from. It
    changes single integers and pairs, and the scale, within the budget; no row gets worse.
    """
    start = rounded(problem)
    if quality == "fast":
        return with_bias_shift(problem, start)
    view = about_means(problem)
    cross = view.hessian if view.cross is None else view.cross
    wanted = problem.weight.double() @ cross.double().mT
    moves = min(problem.columns, MOVE_BUDGET // problem.columns)
    integers, factor, _ = improve_integers(view, wanted, start.integers, problem.tile_scale, moves)
    scale = problem.scale * (factor if problem.scale.ndim == 2 else factor.unsqueeze(-1))
    found = LayerSolution(integers, scale.to(problem.scale.dtype))
    return with_bias_shift(problem, better(view, found, start))
