"""The nearest numbers of a floating-point format, within the accumulator.

Tiles that overflow are shrunk by the smallest threshold with which they fit, found by bisection:
the number that a smaller weight is rounded to is never larger, so that sums can only shrink.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.problem import (
    LayerProblem,
    LayerSolution,
    Quality,
    about_means,
    chosen,
    expanded,
    with_bias_shift,
)
from brevitas_axe.model.minifloats import nearest_significant

# Halvings of a threshold; each row keeps the smallest one that was seen to fit.
_HALVINGS = 24
# Scales that are tried, as shares of the start scale; larger ones need a narrower accumulator.
_SHARES = tuple(2.0 ** (step / 8) for step in range(-6, 13))
# Sums below are exact in int64; a larger one overflows every accumulator.
_EXACT = 2.0**62
_INT32 = 2**31


@torch.no_grad()
def nearest_in_format(problem: LayerProblem, quality: Quality) -> LayerSolution:
    """Numbers of a format, at the start scale or at the best of a few for each row.

    Args:
        problem: with `significant` bits.
        quality: "best" tries other scales than the start scale.
    """
    start = _rounded(problem, problem.scale)
    if quality == "fast":
        return start
    view, best = about_means(problem), start
    shares = (0.5, 2.0) if problem.power_of_two else _SHARES
    for share in shares:
        best = better_in_format(view, _rounded(problem, problem.scale * share), best)
    return with_bias_shift(problem, best)


def better_in_format(
    problem: LayerProblem, found: LayerSolution, other: LayerSolution
) -> LayerSolution:
    """The rows with the less loss of two solutions; of all rows together if they share a scale."""
    gain = other.loss(problem) - found.loss(problem)
    if problem.shared_scale:
        gain = gain.sum().expand_as(gain)
    return chosen(gain > 0, found, other)


def _rounded(problem: LayerProblem, scale: Tensor) -> LayerSolution:
    """Nearest numbers at a scale; tiles that overflow are shrunk until they fit."""
    alive = (problem.hessian.diagonal(dim1=-2, dim2=-1) != 0).unsqueeze(-2)
    # In float64, which holds every integer of a format: a product of 32 bits and a scale.
    ratio = problem.weight.detach().double() * alive / expanded(scale.double(), problem)
    tiles = problem.tile_of_column
    low = torch.zeros(*ratio.shape[:2], problem.tiles, dtype=torch.float64, device=ratio.device)
    high = ratio.new_zeros(low.shape).scatter_reduce_(
        -1, tiles.expand_as(ratio), ratio.abs(), "amax"
    )
    high = high.where(~_fits(problem, _shrunk(problem, ratio, low)), low)
    for _ in range(_HALVINGS if bool((high > 0).any()) else 0):
        middle = (low + high) / 2
        fits = _fits(problem, _shrunk(problem, ratio, middle))
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
    return LayerSolution(_shrunk(problem, ratio, high), scale)


def _shrunk(problem: LayerProblem, ratio: Tensor, threshold: Tensor) -> Tensor:
    """The nearest numbers to weights that are nearer to zero by a threshold of each tile."""
    assert problem.significant is not None
    less = (ratio.abs() - threshold[..., problem.tile_of_column]).clamp_min(0) * ratio.sign()
    numbers = nearest_significant(less, problem.significant)
    return as_integers(problem, numbers.clamp(*problem.weight_range).to(torch.int64))


def as_integers(problem: LayerProblem, numbers: Tensor) -> Tensor:
    """Numbers of a format in the type of a solution's integers."""
    small = max(int(bound.abs().max()) for bound in problem.weight_range) < _INT32
    return numbers.to(torch.int32) if small else numbers


def _fits(problem: LayerProblem, numbers: Tensor) -> Tensor:
    """Whether each tile's worst-case sums stay inside its accumulator, [groups, rows, tiles]."""
    low, high = (bound.unsqueeze(-2) for bound in problem.counted_range)
    up, down = numbers.clamp_min(0).to(torch.int64), numbers.clamp_max(0).to(torch.int64)
    fits = torch.ones(*numbers.shape[:2], problem.tiles, dtype=torch.bool, device=numbers.device)
    for positive, negative in ((high, low), (-low, -high)):
        # Largest sum, and the largest of the negated inputs, which is minus the smallest sum.
        products = up * positive + down * negative
        sums = _per_tile(problem, products)
        # float64 only tells that int64 did not wrap, with room to spare.
        exact = _per_tile(problem, up.double() * positive + down.double() * negative) < _EXACT
        limit = problem.tile_limits
        fits &= (exact & (sums <= limit)) | (limit == 0)
    return fits


def _per_tile(problem: LayerProblem, products: Tensor) -> Tensor:
    """[groups, rows, K] to sums of each tile, [groups, rows, tiles]."""
    sums = products.new_zeros(*products.shape[:2], problem.tiles)
    return sums.index_add_(-1, problem.tile_of_column, products)
