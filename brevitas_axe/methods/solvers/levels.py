"""From a recursion to a solution, at one of the named levels of quality."""

from __future__ import annotations

import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.best import improve
from brevitas_axe.methods.solvers.format_columns import columns_in_format
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.sequential import Recursion, run
from brevitas_axe.methods.solvers.thresholds import published_threshold


@torch.no_grad()
def finish(problem: LayerProblem, recursion: Recursion, quality: Quality) -> LayerSolution:
    """Solves a recursion with the published threshold and, for "best", improves on it.

    Raises:
        InvalidOption: quality is neither "fast" nor "best".
    """
    if quality not in ("fast", "best"):
        raise InvalidOption(f'quality is "fast" or "best", not {quality!r}.')
    if problem.significant is not None:
        return columns_in_format(problem, recursion, quality)
    scale = problem.tile_scale
    integers, _ = run(recursion, problem, scale, published_threshold(problem, scale))
    published = LayerSolution(integers, problem.scale)
    return published if quality == "fast" else improve(problem, published)
