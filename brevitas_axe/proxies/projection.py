"""Projection of integer rows on an accumulator budget. Pure tensor functions, exact integers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_axe.accumulator import InputRange, accumulator_limit

# Halvings of λ: it ends within 2^-24 of the largest weight.
_BISECTIONS = 24


def tiled(rows: Tensor, tile_size: int | None) -> Tensor:
    """[rows, K] → [rows, tiles, T], the short last tile filled with zeros (they add nothing)."""
    size = rows.shape[1] if tile_size is None else min(tile_size, rows.shape[1])
    return F.pad(rows, (0, -rows.shape[1] % size)).unflatten(1, (-1, size))


def extreme_sums(integers: Tensor, reach: InputRange) -> tuple[Tensor, Tensor]:
    """Worst-case sums over the last axis of integers, as int64: (minimum, maximum)."""
    positive = integers.clamp(min=0).sum(-1)
    negative = integers.clamp(max=0).sum(-1)
    return (
        positive * reach.low + negative * reach.high,
        positive * reach.high + negative * reach.low,
    )


def exceeds(
    integers: Tensor, reach: InputRange, accumulator_bit_width: int, tile_size: int | None
) -> Tensor:
    """True for each row of integers [rows, K] (int64) that some tile's budget does not admit."""
    limit = accumulator_limit(accumulator_bit_width)
    minimum, maximum = extreme_sums(tiled(integers, tile_size), reach)
    return ((minimum < -limit) | (maximum > limit)).any(-1)


def project(
    values: Tensor,
    low: int,
    high: int,
    reach: InputRange,
    accumulator_bit_width: int,
    tile_size: int | None,
) -> Tensor:
    """Nearest rounded soft-thresholded rows inside the budget.

    Each tile is shrunk towards 0 by the smallest λ whose rounded result fits, found by bisection;
    fitting is decided on int64 sums. For unsigned inputs positive and negative weights have
    budgets of their own, hence each its own λ (AXE, arXiv 2409.17092, Eq. 15-17; A2Q+ for the
    one-sided form). Weights that change at this very λ, as many as still fit, stay larger by one:
    otherwise a tile of equal weights would vanish as a whole.

    Args:
        values: weights in units of the scale [rows, K], floating point.
        low: smallest weight integer.
        high: largest weight integer.
        reach: integers of the inputs.
        accumulator_bit_width: P.
        tile_size: inputs per tile, None for whole rows.

    Returns:
        int64 [rows, K].
    """
    limit = accumulator_limit(accumulator_bit_width)
    tiles = tiled(values, tile_size)
    independent = reach.low == 0 or reach.high == 0

    def shrunk(positive: Tensor, negative: Tensor) -> Tensor:
        shrink = torch.where(tiles > 0, positive.unsqueeze(-1), negative.unsqueeze(-1))
        size = tiles.abs() - shrink
        return (size.clamp(min=0) * tiles.sign()).round().clamp(low, high).to(torch.int64)

    def fit(integers: Tensor) -> tuple[Tensor, Tensor]:
        above = extreme_sums(integers.clamp(min=0), reach)
        below = extreme_sums(integers.clamp(max=0), reach)
        if independent:
            first, second = ((lo >= -limit) & (hi <= limit) for lo, hi in (above, below))
            return first, second
        both = (above[0] + below[0] >= -limit) & (above[1] + below[1] <= limit)
        return both, both

    ceiling = tiles.abs().amax(-1) + 1
    bounds = [(torch.zeros_like(ceiling), ceiling.clone()) for _ in range(2)]
    for done, (start, _) in zip(fit(shrunk(bounds[0][0], bounds[1][0])), bounds, strict=True):
        start[done] = -1.0  # nothing to shrink on this side
    bounds = [(a, torch.where(a < 0, torch.zeros_like(b), b)) for a, b in bounds]
    for _ in range(_BISECTIONS):
        middle = [(a.clamp(min=0) + b) / 2 for a, b in bounds]
        fitting = fit(shrunk(*middle))
        bounds = [
            (torch.where(ok, a, m), torch.where(ok, m, b))
            for ok, m, (a, b) in zip(fitting, middle, bounds, strict=True)
        ]
    fitting = shrunk(*(b for _, b in bounds))
    wanted = shrunk(*(a.clamp(min=0) for a, _ in bounds))
    return _filled(fitting, wanted, reach, limit).flatten(1)[:, : values.shape[1]]


def _filled(fitting: Tensor, wanted: Tensor, reach: InputRange, limit: int) -> Tensor:
    """Takes over from wanted, first weights first, what the tiles of fitting have room for."""
    step = wanted - fitting
    at_low, at_high = step * reach.low, step * reach.high
    below, above = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
    minimum, maximum = (bound.unsqueeze(-1) for bound in extreme_sums(fitting, reach))
    room_below = (minimum + below.cumsum(-1) >= -limit) | (below == 0)
    room_above = (maximum + above.cumsum(-1) <= limit) | (above == 0)
    return fitting + step * (room_below & room_above)
