"""The level "best": the same guarantee as the published algorithm, far less loss.

Each row tries several multiples of its scale and of the published threshold, all rows in one solve
per try, under error diffusion towards the corrected weights. The best try is refined by feasible
local search and a closed-form fit of the scale. Every step is kept, row by row, only where it
lowers the exact loss, and the published solution is always among the candidates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from brevitas_axe.ptq.corrected import corrected_recursion
from brevitas_axe.ptq.local_search import improve_integers
from brevitas_axe.ptq.problem import LayerProblem, LayerSolution, centred
from brevitas_axe.ptq.sequential import Recursion, run
from brevitas_axe.ptq.thresholds import published_threshold

# Share of the mean diagonal that is added to the diagonal for the error diffusion.
DAMPING = 1e-3
# Multiples of the start scale run from the first number to the second, or to where the budget
# stops biting, whichever is larger (to this power).
SMALLEST, LARGEST, OVERSHOOT = 0.6, 1.1, 1.25
COARSE_STEPS = 6
FINE_STEPS = 2
# Thresholds tried, as multiples of the published one; the first while the scale is searched.
THRESHOLDS = (0.5, 0.0, 1.0)


@dataclass(eq=False)
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

    def offer(self, other: Best, together: bool) -> None:
        """Takes over the rows of another that are better, or all or none of them."""
        better = other.loss < self.loss
        if together and not torch.equal(other.gamma, self.gamma):
            better = (other.loss.sum() < self.loss.sum()).expand_as(better)
        for name in ("loss", "gamma", "multiple"):
            setattr(self, name, torch.where(better, getattr(other, name), getattr(self, name)))
        self.integers[better] = other.integers[better]


@dataclass(frozen=True, eq=False)
class Search:
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
    dtype = problem.dtype
    hessian, cross = problem.hessian, problem.cross
    if problem.quant_mean is not None:
        # The bias takes the mean error; what is left is measured about the means.
        cross = hessian if cross is None else cross
        hessian, cross = (
            moments.to(dtype) for moments in centred(problem, hessian.double(), cross.double())
        )
    view = replace(problem, hessian=hessian, cross=cross)
    wanted = problem.weight.double() @ (hessian if cross is None else cross).double().mT
    best = _search(view)
    integers, factor = improve_integers(
        view,
        hessian.to(dtype),
        wanted,
        best.integers,
        problem.tile_scale * best.gamma.unsqueeze(-1),
        problem.columns,
    )
    gamma = best.gamma * factor
    scale = problem.scale * (gamma if problem.scale.ndim == 2 else gamma.unsqueeze(-1)).to(dtype)
    found = _with_shift(problem, LayerSolution(integers, scale))
    return _better_rows(problem, found, _with_shift(problem, published))


def _search(problem: LayerProblem) -> Best:
    """The best try of each row."""
    damping = DAMPING * problem.hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
    search = Search(problem, *corrected_recursion(problem, True, damping))
    needed = _needed_multiple(problem)
    lowest = torch.where(needed > 1, 1.0, SMALLEST)
    span = (needed**OVERSHOOT).clamp_min(LARGEST).div(lowest).log()
    step = span / (COARSE_STEPS - 1)
    multiple = torch.full_like(needed, THRESHOLDS[0])
    together = problem.shared_scale
    best = search.attempt(lowest, multiple)
    for coarse in range(1, COARSE_STEPS):
        best.offer(search.attempt(lowest * (coarse * step).exp(), multiple), together)
    for fine in range(1, FINE_STEPS + 1):
        centre, shift = best.gamma, (step / 2**fine).exp()
        best.offer(search.attempt(centre * shift, multiple), together)
        best.offer(search.attempt(centre / shift, multiple), together)
    for multiple in THRESHOLDS[1:]:
        best.offer(search.attempt(best.gamma, torch.full_like(needed, multiple)), together)
    return best


def _needed_multiple(problem: LayerProblem) -> Tensor:
    """[groups, rows] multiple of the scale at which the unrounded weights just fit the budget."""
    if problem.accumulator_bit_width is None:
        return torch.zeros(problem.weight.shape[:2], dtype=problem.dtype)
    value = problem.weight / problem.tile_scale[:, :, problem.tile_of_column]
    low, high = (bound.unsqueeze(1).to(problem.dtype) for bound in problem.input_range)
    largest = torch.maximum(value * low, value * high)
    smallest = torch.minimum(value * low, value * high)
    sums = torch.zeros(2, *problem.tile_scale.shape, dtype=problem.dtype)
    sums.index_add_(-1, problem.tile_of_column, torch.stack((largest, -smallest)))
    return sums.amax((0, -1)) / (2 ** (problem.accumulator_bit_width - 1) - 1)


def _with_shift(problem: LayerProblem, solution: LayerSolution) -> LayerSolution:
    """The solution with the mean error in the bias, where there is one."""
    if problem.quant_mean is None:
        return solution
    wanted = (problem.weight.double() * problem.float_mean.double().unsqueeze(1)).sum(-1)
    given = (solution.value(problem) * problem.quant_mean.double().unsqueeze(1)).sum(-1)
    return replace(solution, bias_shift=wanted - given)


def _better_rows(
    problem: LayerProblem, found: LayerSolution, published: LayerSolution
) -> LayerSolution:
    """The rows of found where their exact loss is lower, those of published elsewhere."""
    better = found.loss(problem) < published.loss(problem)
    if problem.shared_scale:
        total = found.loss(problem).sum() < published.loss(problem).sum()
        better = total.expand_as(better)
    row = better.unsqueeze(-1)
    return LayerSolution(
        torch.where(row, found.integers, published.integers),
        torch.where(better if found.scale.ndim == 2 else row, found.scale, published.scale),
        None
        if found.bias_shift is None
        else torch.where(better, found.bias_shift, published.bias_shift),
    )
