"""Numbers of a floating-point format, decided column after column by a recursion.

The recursions are those of integers (sequential.py). Between its neighbours a number of a format is
off by as much as the weight is large, so each error is passed on to the columns that come later,
whose numbers may be finer. The accumulator's budget is counted in integers on the format's finest
grid: a number that exceeds what is left of it becomes the largest number of the format that does
not.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.corrected import corrected_recursion
from brevitas_axe.methods.solvers.format_rounding import (
    as_integers,
    better_in_format,
    nearest_in_format,
)
from brevitas_axe.methods.solvers.problem import (
    LayerProblem,
    LayerSolution,
    Quality,
    about_means,
    with_bias_shift,
)
from brevitas_axe.methods.solvers.sequential import BLOCK, Recursion, blocks_of
from brevitas_axe.methods.solvers.thresholds import published_threshold
from brevitas_axe.model.minifloats import nearest_significant

# Scales that the best quality tries, as shares of the one at which rounding to nearest is best.
_SHARES = (1.0, 2 ** (-1 / 8), 2 ** (1 / 8), 2 ** (1 / 4))
# More than any number of a format.
_ENDLESS = 2**62
# Shares of the mean diagonal that are added to the diagonal.
_DAMPING = 0.01


@torch.no_grad()
def columns_in_format(
    problem: LayerProblem, recursion: Recursion, quality: Quality
) -> LayerSolution:
    """The better of rounding to nearest and of error diffusion, row by row, by the exact loss.

    Args:
        problem: with `significant` bits.
        recursion: of "fast"; "best" has one that follows the float inputs, and tries more scales.
        quality: see `brevitas_axe.methods.solvers.Solver`.
    """
    best = nearest_in_format(problem, quality)
    if quality == "fast":
        view, shares = problem, (1.0,)
    else:
        view = about_means(problem)
        damping = _DAMPING * view.hessian.diagonal(dim1=-2, dim2=-1).mean(-1)
        recursion, _ = corrected_recursion(view, True, damping)
        shares = (1.0, 0.5, 2.0) if problem.power_of_two else _SHARES
    start = best.scale
    for share in shares:
        for multiple in (0.0,) if problem.unlimited else (0.0, 1.0):
            found = _diffused(view, recursion, start * share, multiple)
            best = better_in_format(view, found, best)
    return best if quality == "fast" else with_bias_shift(problem, best)


def _diffused(
    problem: LayerProblem, recursion: Recursion, scale: Tensor, multiple: float
) -> LayerSolution:
    """One solve at a scale, with weights shrunk by a multiple of the published threshold."""
    expanded = scale if scale.ndim == 3 else scale.unsqueeze(-1)
    size = expanded.to(problem.dtype).expand(*problem.weight.shape[:2], problem.tiles)
    threshold = published_threshold(problem, size) * multiple
    return LayerSolution(_run(recursion, problem, size.double(), threshold.double()), scale)


def _run(recursion: Recursion, problem: LayerProblem, scale: Tensor, threshold: Tensor) -> Tensor:
    """Numbers [groups, rows, K] as integers; scale and threshold are [groups, rows, tiles]."""
    base, target, coupling, pivot = (
        matrix.double()
        for matrix in (recursion.base, recursion.target, recursion.coupling, recursion.pivot)
    )
    groups, columns, rows = base.shape
    order = recursion.order
    if order is None:
        order = torch.arange(columns, device=base.device).expand(groups, -1)
    tiles = problem.tile_of_column[order]
    low, high = (bound.gather(1, order) for bound in problem.counted_range)
    most = problem.weight_range[1][order]
    room = problem.tile_limits.view(1, -1, 1).repeat(groups, 1, rows)
    rooms = (room, room.clone())
    error = torch.zeros_like(base)
    numbers = torch.zeros(groups, columns, rows, dtype=torch.int64, device=base.device)
    for block, carried in blocks_of(coupling, error, BLOCK, recursion.backward):
        inside = range(block.start, block.stop)
        for k in reversed(inside) if recursion.backward else inside:
            done = slice(k + 1, block.stop) if recursion.backward else slice(block.start, k)
            sums = carried[:, k - block.start]
            sums = sums + (coupling[:, k, None, done] @ error[:, done]).squeeze(1)
            alive = pivot[:, k, None] != 0
            wanted = (base[:, k] - sums / pivot[:, k, None].where(alive, 1)) * alive
            at = partial(_at, index=tiles[:, k])
            size = at(scale.mT)
            magnitude = (wanted.abs() - at(threshold.mT)).clamp_min(0) / size
            grows = _growth(wanted < 0, low[:, k, None], high[:, k, None])
            limit = _room(rooms, grows, tiles[:, k])
            magnitude = magnitude.minimum(limit.double())
            limit = limit.minimum(most[:, k, None])
            chosen_here = nearest_significant(
                magnitude.minimum(limit.double()), problem.significant
            ).to(torch.int64)
            chosen_here = chosen_here.minimum(_floored(limit, problem.significant))
            for left, each in zip(rooms, grows, strict=True):
                _spend(left, tiles[:, k], chosen_here * each)
            numbers[:, k] = chosen_here * wanted.sign().to(torch.int64)
            value = numbers[:, k] * size
            error[:, k] = value - target[:, k]
            if recursion.forgets_shrinkage:
                error[:, k] += wanted - magnitude * size * wanted.sign()
    natural = numbers.gather(1, order.argsort(-1).unsqueeze(-1).expand_as(numbers))
    return as_integers(problem, natural.mT)


def _at(each: Tensor, index: Tensor) -> Tensor:
    """[groups, tiles, rows] at one tile of every group, [groups, rows]."""
    return each[torch.arange(len(index), device=index.device), index]


def _growth(negative: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """What one unit of a number adds to the largest sum, and to the smallest one's magnitude."""
    return torch.where(negative, -low, high), torch.where(negative, high, -low)


def _room(rooms: tuple[Tensor, Tensor], grows: tuple[Tensor, Tensor], tile: Tensor) -> Tensor:
    """The largest magnitude for which the accumulator has room, int64 [groups, rows]."""
    limit = torch.full_like(grows[0], _ENDLESS)
    for left, each in zip(rooms, grows, strict=True):
        fitting = _at(left, tile) // each.clamp_min(1)
        limit = torch.where(each > 0, limit.minimum(fitting), limit)
    return limit


def _spend(left: Tensor, tile: Tensor, amount: Tensor) -> None:
    left[torch.arange(len(tile), device=tile.device), tile] -= amount


def _floored(limit: Tensor, bits: int | None) -> Tensor:
    """The largest integers up to a limit that have so many significant bits."""
    if bits is None:
        return limit
    # A limit that is rounded up to a power of two only gives a coarser grid.
    _, exponent = torch.frexp(limit.double())
    step = torch.ones_like(limit) << (exponent.to(torch.int64) - bits).clamp_min(0)
    return limit // step * step
