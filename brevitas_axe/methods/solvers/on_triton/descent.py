"""The local search of descent.py in Triton: one program per row.

Same name, arguments and moves, up to ties of floating-point numbers. A move takes several passes
over the columns, and a pass takes `COLUMNS` of them at once. What one thread writes, others read in
the next pass, hence the barriers.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from brevitas_axe.methods.solvers.descent import LEAST_GAIN, MOVES_PER_REFIT, PAIR_STARTS
from brevitas_axe.methods.solvers.on_triton.recursion import OPTIONS

COLUMNS = 1024

_LEAST_GAIN = tl.constexpr(LEAST_GAIN)
_MOVES_PER_REFIT = tl.constexpr(MOVES_PER_REFIT)
_PAIR_STARTS = tl.constexpr(PAIR_STARTS)


@triton.jit
def _room_after(q, step, above, below, low, high, weight_low, weight_high):
    """(room above, room below) after one step, exact; negative where it does not fit."""
    new = q + step
    above += tl.maximum(q * low, q * high) - tl.maximum(new * low, new * high)
    below += tl.minimum(new * low, new * high) - tl.minimum(q * low, q * high)
    inside = (new >= weight_low) & (new <= weight_high)
    return tl.where(inside, above, -1), tl.where(inside, below, -1)


@triton.jit
def _limits_of(k, known, low, high, weight_low, weight_high):
    """(low, high) of the input and of the integer of each column."""
    return (
        tl.load(low + k, mask=known, other=0),
        tl.load(high + k, mask=known, other=0),
        tl.load(weight_low + k, mask=known, other=0),
        tl.load(weight_high + k, mask=known, other=0),
    )


@triton.jit
def _refit(q, r, wanted, scale, tile_of, factor, columns, AT_ONCE: tl.constexpr):
    """Moves the scale to its optimum; returns (what it was multiplied by, the loss)."""
    along = tl.full((), 0.0, tl.float64)
    energy = tl.full((), 0.0, tl.float64)
    for begin in range(0, columns, AT_ONCE):
        k = begin + tl.arange(0, AT_ONCE)
        known = k < columns
        size = factor * tl.load(scale + tl.load(tile_of + k, mask=known, other=0))
        x = size * tl.load(q + k, mask=known, other=0).to(tl.float64)
        aim = tl.load(wanted + k, mask=known, other=0.0)
        along += tl.sum(x * aim)
        energy += tl.sum(x * (tl.load(r + k, mask=known, other=0.0) + aim))
    ratio = tl.full((), 1.0, tl.float64)
    loss = energy - 2 * along
    if (along > 0) & (energy > 0):
        ratio = along / energy
        loss = -along * ratio
        for begin in range(0, columns, AT_ONCE):
            k = begin + tl.arange(0, AT_ONCE)
            known = k < columns
            aim = tl.load(wanted + k, mask=known, other=0.0)
            moved = ratio * (tl.load(r + k, mask=known, other=0.0) + aim) - aim
            tl.store(r + k, moved, mask=known)
        tl.debug_barrier()
    return ratio, loss


@triton.jit
def _best_single(
    after_gain, after, fits, q, r, diagonal, scale, factor, room_above, room_below, tile_of, low,
    high, weight_low, weight_high, columns, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """(column, gain) of the best step behind another in the order of gains; -1 if there is none.

    Args:
        after_gain, after: gain and column of the other step.
        fits: whether the step must fit the accumulator.
    """
    best = tl.full((), -1, tl.int32)
    best_gain = tl.full((), float("-inf"), tl.float64)
    for begin in range(0, columns, AT_ONCE):
        k = begin + tl.arange(0, AT_ONCE)
        known = k < columns
        tile = tl.load(tile_of + k, mask=known, other=0)
        size = factor * tl.load(scale + tile)
        slope = tl.load(r + k, mask=known, other=0.0)
        gain = size * (2 * tl.abs(slope) - size * tl.load(diagonal + k, mask=known, other=0.0))
        a, b, c, d = _limits_of(k, known, low, high, weight_low, weight_high)
        own = tl.load(q + k, mask=known, other=0)
        above, below = tl.load(room_above + tile), tl.load(room_below + tile)
        step = tl.where(slope > 0, -1, 1)
        above, below = _room_after(own, step, above, below, a, b, c, d)
        new = own + step
        takes = (above >= 0) & (below >= 0) | (fits == 0) & (new >= c) & (new <= d)
        takes &= (gain < after_gain) | (gain == after_gain) & (k > after)
        found, place = tl.max(
            tl.where(known & takes, gain, float("-inf")), axis=0, return_indices=True
        )
        if found > best_gain:
            best_gain = found
            best = begin + place
    return best, best_gain


@triton.jit
def _best_partner(
    i, i_gain, least, q, r, hessian, diagonal, scale, factor, room_above, room_below, edges,
    tile_of, low, high, weight_low, weight_high, columns, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """(column, step, gain of the pair) of the best second step after i's; column -1 for none."""
    i_tile = tl.load(tile_of + i)
    i_step = tl.where(tl.load(r + i) > 0, -1, 1)
    change = i_step * factor * tl.load(scale + i_tile)
    i_above, i_below = _room_after(
        tl.load(q + i), i_step, tl.load(room_above + i_tile), tl.load(room_below + i_tile),
        tl.load(low + i), tl.load(high + i), tl.load(weight_low + i), tl.load(weight_high + i),
    )  # fmt: skip
    # Where i does not fit alone, a column of its own tile has to make room.
    alone = (i_above >= 0) & (i_below >= 0)
    first = tl.where(alone, 0, tl.load(edges + i_tile)).to(tl.int32)
    last = tl.where(alone, columns, tl.load(edges + i_tile + 1)).to(tl.int32)
    best = tl.full((), -1, tl.int32)
    best_step = tl.full((), 0, tl.int32)
    best_gain = least
    for begin in range(first, last, AT_ONCE):
        k = begin + tl.arange(0, AT_ONCE)
        known = k < last
        tile = tl.load(tile_of + k, mask=known, other=0)
        size = factor * tl.load(scale + tile)
        line = tl.load(hessian + i * columns + k, mask=known, other=0.0).to(tl.float64)
        slope = tl.load(r + k, mask=known, other=0.0) + change * line
        gain = size * (2 * tl.abs(slope) - size * tl.load(diagonal + k, mask=known, other=0.0))
        gain += i_gain
        a, b, c, d = _limits_of(k, known, low, high, weight_low, weight_high)
        own = tl.load(q + k, mask=known, other=0)
        above = tl.where(tile == i_tile, i_above, tl.load(room_above + tile))
        below = tl.where(tile == i_tile, i_below, tl.load(room_below + tile))
        step = tl.where(slope > 0, -1, 1)
        one, two = _room_after(own, step, above, below, a, b, c, d)
        three, four = _room_after(own, -step, above, below, a, b, c, d)
        better = (one >= 0) & (two >= 0)
        # The other direction may free what this one lacks.
        gain = tl.where(better, gain, gain - 4 * size * tl.abs(slope))
        step = tl.where(better, step, -step)
        takes = known & (k != i) & (better | (three >= 0) & (four >= 0))
        found, place = tl.max(tl.where(takes, gain, float("-inf")), axis=0, return_indices=True)
        if found > best_gain:
            best_gain = found
            best = begin + place
            best_step = tl.sum(tl.where(k == begin + place, step, 0))
    return best, best_step, best_gain


@triton.jit
def _best_pair(
    least, q, r, hessian, diagonal, scale, factor, room_above, room_below, edges, tile_of, low,
    high, weight_low, weight_high, columns, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """(i, j, step of j, gain): the first pair found, its first halves tried best first; i = -1."""
    i = tl.full((), -1, tl.int32)
    j = tl.full((), -1, tl.int32)
    j_step = tl.full((), 0, tl.int32)
    gain = tl.full((), 0.0, tl.float64)
    start = tl.full((), -1, tl.int32)
    start_gain = tl.full((), float("inf"), tl.float64)
    tries = tl.full((), 0, tl.int32)
    while tries < _PAIR_STARTS:
        start, start_gain = _best_single(
            start_gain, start, 0, q, r, diagonal, scale, factor, room_above, room_below, tile_of,
            low, high, weight_low, weight_high, columns, AT_ONCE,
        )  # fmt: skip
        tries += 1
        if start >= 0:
            j, j_step, gain = _best_partner(
                start, start_gain, least, q, r, hessian, diagonal, scale, factor, room_above,
                room_below, edges, tile_of, low, high, weight_low, weight_high, columns, AT_ONCE,
            )  # fmt: skip
        if j >= 0:
            i = start
        if (start < 0) | (j >= 0):
            tries += _PAIR_STARTS
    return i, j, j_step, gain


@triton.jit
def _move(
    k, step, q, r, hessian, scale, factor, room_above, room_below, tile_of, low, high, columns,
    AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Takes one step: integers, room and gradient."""
    tile = tl.load(tile_of + k)
    own = tl.load(q + k)
    above, below = _room_after(
        own, step, tl.load(room_above + tile), tl.load(room_below + tile), tl.load(low + k),
        tl.load(high + k), own + step, own + step,
    )  # fmt: skip
    change = step * factor * tl.load(scale + tile)
    tl.debug_barrier()
    tl.store(q + k, own + step)
    tl.store(room_above + tile, above)
    tl.store(room_below + tile, below)
    for begin in range(0, columns, AT_ONCE):
        other = begin + tl.arange(0, AT_ONCE)
        known = other < columns
        line = tl.load(hessian + k * columns + other, mask=known, other=0.0).to(tl.float64)
        moved = tl.load(r + other, mask=known, other=0.0) + change * line
        tl.store(r + other, moved, mask=known)
    tl.debug_barrier()


@triton.jit(do_not_specialize=["most_moves"])
def _descend(
    hessian, wanted, integers, scale, half_gradient, factors, losses, diagonal, room_above,
    room_below, edges, tile_of, low, high, weight_low, weight_high, most_moves, rows, columns,
    tiles, REFITS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Local search of one row, whose losses are given and replaced."""
    row = tl.program_id(0).to(tl.int64)
    group = row // rows
    hessian += group * columns * columns
    diagonal += group * columns
    low += group * columns
    high += group * columns
    q = integers + row * columns
    r = half_gradient + row * columns
    wanted += row * columns
    scale += row * tiles
    room_above += row * tiles
    room_below += row * tiles
    loss = tl.load(losses + row)
    factor = tl.full((), 1.0, tl.float64)
    infinite = tl.full((), float("inf"), tl.float64)
    moves = tl.full((), 0, tl.int32)
    settled = tl.full((), 0 if REFITS else 1, tl.int32)
    goes_on = (most_moves > 0).to(tl.int32)
    while goes_on > 0:
        if REFITS & (moves % _MOVES_PER_REFIT == 0):
            ratio, loss = _refit(q, r, wanted, scale, tile_of, factor, columns, AT_ONCE)
            factor *= ratio
        least = _LEAST_GAIN * tl.abs(loss)
        i, gain = _best_single(
            infinite, -1, 1, q, r, diagonal, scale, factor, room_above, room_below, tile_of, low,
            high, weight_low, weight_high, columns, AT_ONCE,
        )  # fmt: skip
        j = tl.full((), -1, tl.int32)
        j_step = tl.full((), 0, tl.int32)
        if gain <= least:
            i, j, j_step, gain = _best_pair(
                least, q, r, hessian, diagonal, scale, factor, room_above, room_below, edges,
                tile_of, low, high, weight_low, weight_high, columns, AT_ONCE,
            )  # fmt: skip
        if i >= 0:
            i_step = tl.where(tl.load(r + i) > 0, -1, 1)
            _move(
                i, i_step, q, r, hessian, scale, factor, room_above, room_below, tile_of, low, high,
                columns, AT_ONCE,
            )  # fmt: skip
            if j >= 0:
                _move(
                    j, j_step, q, r, hessian, scale, factor, room_above, room_below, tile_of, low,
                    high, columns, AT_ONCE,
                )  # fmt: skip
            settled = tl.full((), 0 if REFITS else 1, tl.int32)
            loss -= gain
            moves += 1
            goes_on = (moves < most_moves).to(tl.int32)
        else:
            goes_on = 1 - settled
            if settled == 0:
                # The fit has changed the gains: search once more before stopping.
                ratio, loss = _refit(q, r, wanted, scale, tile_of, factor, columns, AT_ONCE)
                factor *= ratio
                settled = tl.full((), 1, tl.int32)
    tl.store(factors + row, factor)
    tl.store(losses + row, loss)


def descend(
    hessian: Tensor,
    wanted: Tensor,
    integers: Tensor,
    scale: Tensor,
    half_gradient: Tensor,
    factor: Tensor,
    losses: Tensor,
    edges: Tensor,
    tile_of: Tensor,
    limits: Tensor,
    input_low: Tensor,
    input_high: Tensor,
    weight_low: Tensor,
    weight_high: Tensor,
    most_moves: int,
    refits: bool,
) -> None:
    """Local search of every row; see the kernel of this name."""
    groups, rows, columns = integers.shape
    low, high = integers * input_low.unsqueeze(1), integers * input_high.unsqueeze(1)
    room = limits.expand(groups, rows, -1)
    above = room.index_add(-1, tile_of, -torch.maximum(low, high))
    below = room.index_add(-1, tile_of, torch.minimum(low, high))
    value = integers * scale[:, :, tile_of]
    losses.copy_((value * (half_gradient - wanted)).sum(-1))
    diagonal = hessian.diagonal(dim1=-2, dim2=-1).double().contiguous()
    kernel: Any = _descend
    with torch.cuda.device_of(integers):
        kernel[(groups * rows,)](
            hessian,
            wanted,
            integers,
            scale,
            half_gradient,
            factor,
            losses,
            diagonal,
            above.contiguous(),
            below.contiguous(),
            edges,
            tile_of,
            input_low,
            input_high,
            weight_low,
            weight_high,
            most_moves,
            rows,
            columns,
            scale.shape[-1],
            REFITS=refits,
            AT_ONCE=min(triton.next_power_of_2(columns), COLUMNS),
            **OPTIONS,
        )
