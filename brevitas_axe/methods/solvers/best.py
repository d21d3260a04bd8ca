"""The level "best": the same guarantee as the published algorithm, far less loss.

Each row tries several multiples of its scale and of the published threshold, all rows in one solve
per try, under error diffusion towards the corrected weights. The best try is refined by feasible
local search and a closed-form fit of the scale. A step is kept, row by row, only where it
lowers the exact loss, and the published solution is always among the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.corrected import corrected_recursion
from brevitas_axe.methods.solvers.local_search import improve_integers
from brevitas_axe.methods.solvers.problem import (
    LayerProblem,
    LayerSolution,
    centred,
    chosen,
    with_bias_shift,
)
from brevitas_axe.methods.solvers.sequential import Recursion, run
from brevitas_axe.methods.solvers.thresholds import published_threshold

# Share of the mean diagonal that is added to the diagonal for the error diffusion.
DAMPING = 1e-2
# Range of scale multiples that are tried. Where the budget binds, the range ends at
# needed**OVERSHOOT instead, if that is larger; needed is the multiple at which unrounded weights
# just fit the budget.
SMALLEST, LARGEST, OVERSHOOT = 0.6, 1.1, 1.25
COARSE_STEPS = 6
FINE_STEPS = 2
# Local searches start from these multiples of the best scale: smaller scales leave them more to
# change, and usually end at a lower loss. Rows within their budget without any change start from
# start**FITTING_POWER, since they have less to gain.
STARTS, FITTING_POWER = (1.0, 0.6), 0.25
# A move costs a few passes over the columns: moves times columns per row and start are bounded.
MOVE_BUDGET = 2**19
# Thresholds tried, as multiples of the published one; the first while the scale is searched.
THRESHOLDS = (0.5, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Best:
    """The best try of each row so far.

    Attributes:
        loss: [groups, rows], comparable between tries only.
        integers: int32 [groups, rows, K].
        gamma: [groups, rows], multiple of the start scale.
        multiple: [groups, rows], multiple of the published threshold.
    """

    loss: Tensor
    integers: Tensor
    gamma: Tensor
    multiple: Tensor

    def offer(self, other: Best, together: bool) -> Best:
        """The better of both, row by row, or all rows of one where they stay together."""
        better = other.loss < self.loss
        if together and not torch.equal(other.gamma, self.gamma):
            # One scale for all: it changes for all or for none.
            better = (other.loss.sum() < self.loss.sum()).expand_as(better)
        return Best(
            torch.where(better, other.loss, self.loss),
            torch.where(better.unsqueeze(-1), other.integers, self.integers),
            torch.where(better, other.gamma, self.gamma),
            torch.where(better, other.multiple, self.multiple),
        )


@dataclass(frozen=True, eq=False)
class ScaleSearch:
    """One layer's matrices, shared by all tries."""

    problem: LayerProblem
    recursion: Recursion
    damping: Tensor

    def attempt(self, gamma: Tensor, multiple: Tensor) -> Best:
        """Solves every row with its own multiples of scale and threshold, [groups, rows]."""
        if self.problem.shared_scale:
            gamma = gamma.amax().expand_as(gamma)
        if self.problem.power_of_two:
            gamma = gamma.log2().round().exp2()
        scale = self.problem.tile_scale * gamma.unsqueeze(-1)
        threshold = published_threshold(self.problem, scale) * multiple.unsqueeze(-1)
        integers, residual = run(self.recursion, self.problem, scale, threshold)
        # The residual is the loss plus what the damping adds, d ||w - s q||^2.
        distance = integers * scale[:, :, self.problem.tile_of_column] - self.problem.weight
        added = self.damping.unsqueeze(-1) * distance.square().sum(-1)
        return Best(residual - added, integers, gamma, multiple)


@torch.no_grad()
def improve(problem: LayerProblem, published: LayerSolution) -> LayerSolution:
    """Searches for a better solution than the published algorithm's.

    Args:
        problem: the layer.
        published: a feasible solution with the problem's own scale.

    Returns:
        The best found for each row, or for all rows together where they share one scale.
    """
    if problem.quant_mean is None:
        hessian, view = problem.hessian.double(), problem
        cross = hessian if problem.cross is None else problem.cross.double()
    else:
        # The bias takes the mean error; what is left is measured about the means.
        hessian, cross = centred(problem)
        view = replace(problem, hessian=hessian.to(problem.dtype), cross=cross.to(problem.dtype))
    wanted = problem.weight.double() @ cross.mT
    del cross
    best = _refined(view, wanted)
    gamma = best.gamma
    if problem.shared_scale and not problem.power_of_two:
        gamma = gamma * _shared_refit(problem, best, hessian, wanted)
    scale = (problem.scale * (gamma if problem.scale.ndim == 2 else gamma.unsqueeze(-1))).to(
        problem.scale.dtype
    )
    found = LayerSolution(best.integers, scale)
    ours, theirs = found.value(problem), published.value(problem)
    # The difference of two losses x H x - 2 x G w, by one product instead of two.
    difference = ((ours - theirs) * ((ours + theirs) @ hessian - 2 * wanted)).sum(-1)
    if problem.shared_scale:
        difference = difference.sum().expand_as(difference)
    return with_bias_shift(problem, chosen(difference < 0, found, published))


def _refined(problem: LayerProblem, wanted: Tensor) -> Best:
    """The best of several local searches for each row; wanted is w G^T, float64."""
    damping = DAMPING * problem.hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    search = ScaleSearch(problem, *corrected_recursion(problem, True, damping))
    needed = _needed_multiple(problem)
    most_moves = min(problem.columns, MOVE_BUDGET // problem.columns)
    found = _best_scale(search, needed)
    power = torch.where(needed > 1, 1.0, FITTING_POWER)

    def refined(start: float) -> Best:
        gamma = start**power * found.gamma
        attempt = found if start == 1 else search.attempt(gamma, found.multiple)
        scale = problem.tile_scale * attempt.gamma.unsqueeze(-1)
        integers, factor, loss = improve_integers(
            problem, wanted, attempt.integers, scale, most_moves
        )
        return Best(loss, integers, attempt.gamma * factor, attempt.multiple)

    return reduce(lambda best, other: best.offer(other, problem.shared_scale), map(refined, STARTS))


def _best_scale(search: ScaleSearch, needed: Tensor) -> Best:
    """The best try of each row, before any local search."""
    lowest = torch.where(needed > 1, 1.0, SMALLEST)
    span = (needed**OVERSHOOT).clamp_min(LARGEST).div(lowest).log()
    step = span / (COARSE_STEPS - 1)
    multiple = torch.full_like(needed, THRESHOLDS[0])
    together = search.problem.shared_scale
    best = search.attempt(lowest, multiple)
    for coarse in range(1, COARSE_STEPS):
        best = best.offer(search.attempt(lowest * (coarse * step).exp(), multiple), together)
    for fine in range(1, FINE_STEPS + 1):
        centre, shift = best.gamma, (step / 2**fine).exp()
        best = best.offer(search.attempt(centre * shift, multiple), together)
        best = best.offer(search.attempt(centre / shift, multiple), together)
    for multiple in THRESHOLDS[1:]:
        best = best.offer(search.attempt(best.gamma, torch.full_like(needed, multiple)), together)
    return best


def _needed_multiple(problem: LayerProblem) -> Tensor:
    """[groups, rows] multiple of the scale at which the unrounded weights just fit the budget."""
    if problem.unlimited:
        return torch.zeros_like(problem.weight[..., 0], dtype=problem.dtype)
    value = problem.weight / problem.tile_scale[:, :, problem.tile_of_column]
    low, high = (bound.unsqueeze(1).to(problem.dtype) for bound in problem.counted_range)
    largest = torch.maximum(value * low, value * high)
    smallest = torch.minimum(value * low, value * high)
    sums = problem.tile_scale.new_zeros(2, *problem.tile_scale.shape)
    sums.index_add_(-1, problem.tile_of_column, torch.stack((largest, -smallest)))
    sums = sums.masked_fill(problem.binary_tiles, 0)  # they fit at every scale
    return (sums.amax(0) / problem.tile_limits.clamp_min(1).to(sums)).amax(-1)


def _shared_refit(problem: LayerProblem, best: Best, hessian: Tensor, wanted: Tensor) -> Tensor:
    """What the one scale of all rows is to be multiplied by, in closed form."""
    value = best.integers * problem.tile_scale[:, :, problem.tile_of_column].double()
    value *= best.gamma.unsqueeze(-1)
    along, energy = (value * wanted).sum(), (value * (value @ hessian)).sum()
    return along / energy if along > 0 and energy > 0 else torch.ones_like(along)
