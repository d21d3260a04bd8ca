"""Compiled kernels of the local search (see local_search.py, and kernels.py for the rules).

Notation: x = s q are the weights that integers q stand for, r = x H - w G^T half the gradient of
the loss; a step d = +-1 of one integer lowers the loss by -2 d s r - s^2 H_kk.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# First halves of pairs that are tried, best first: the first that finds a partner is taken.
PAIR_STARTS = 8
# A move must lower the loss by more than this share of it; smaller gains do not repay their time.
LEAST_GAIN = 1e-5
# The scale is fitted again after this many moves.
MOVES_PER_REFIT = 16
# Columns whose gains are compared at once.
GROUP = 64


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _room_after(q, step, room, low, high, weight_low, weight_high):
    """(room above, room below) after one step, exact; negative where it does not fit."""
    new = q + step
    if new < weight_low or new > weight_high:
        return -1, -1
    above = room[0] + max(q * low, q * high) - max(new * low, new * high)
    below = room[1] + min(new * low, new * high) - min(q * low, q * high)
    return above, below


@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def _refit(q, size, half_gradient, wanted):
    """Moves the scale to its optimum; returns (what it was multiplied by, the loss)."""
    along = 0.0
    energy = 0.0
    for k in range(len(q)):
        x = size[k] * q[k]
        along += x * wanted[k]
        energy += x * (half_gradient[k] + wanted[k])
    if along <= 0 or energy <= 0:
        return 1.0, energy - 2 * along
    ratio = along / energy
    for k in range(len(q)):
        size[k] *= ratio
        half_gradient[k] = ratio * (half_gradient[k] + wanted[k]) - wanted[k]
    return ratio, -along * ratio


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _gains(half_gradient, coupling, line, size, diagonal, gains):
    """Writes each column's gain by its better step, with coupling * line added to the gradient."""
    for k in range(len(gains)):
        slope = abs(half_gradient[k] + coupling * line[k])
        gains[k] = size[k] * (2 * slope - size[k] * diagonal[k])


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _any_above(gains, bound):
    """True if any gain exceeds the bound.

    Counts instead of returning early, because the compiler can vectorize a count.
    """
    count = 0
    for k in range(len(gains)):
        count += gains[k] > bound
    return count > 0


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _best_single(
    q, half_gradient, gains, room, tile_of, low, high, weight_low, weight_high, least, starts
):
    """(column, gain) of the best step within the budget; column -1 if there is none.

    Writes to starts the columns with the largest gains whether they fit or not, best first: first
    halves for pairs.
    """
    best, best_gain = -1, least
    starts[:] = -1
    cut = -np.inf
    for first in range(0, len(q), GROUP):
        last = min(first + GROUP, len(q))
        if not _any_above(gains[first:last], min(best_gain, cut)):
            continue
        for k in range(first, last):
            gain = gains[k]
            if gain <= min(best_gain, cut):
                continue
            step = -1 if half_gradient[k] > 0 else 1
            above, below = _room_after(
                q[k], step, room[tile_of[k]], low[k], high[k], weight_low[k], weight_high[k]
            )
            if gain > best_gain and above >= 0 and below >= 0:
                best, best_gain = k, gain
            if gain > cut and weight_low[k] <= q[k] + step <= weight_high[k]:
                place = PAIR_STARTS - 1
                while place > 0 and (starts[place - 1] < 0 or gains[starts[place - 1]] < gain):
                    starts[place] = starts[place - 1]
                    place -= 1
                starts[place] = k
                if starts[-1] >= 0:
                    cut = gains[starts[-1]]
    return best, best_gain


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _best_partner(
    i,
    i_step,
    i_gain,
    least,
    q,
    half_gradient,
    line,
    size,
    gains,
    room,
    edges,
    tile_of,
    low,
    high,
    weight_low,
    weight_high,
):
    """(column, step, gain of the pair) of the best second step after i's; column -1 for none.

    gains are those of every column after i's step, each for its better direction.
    """
    best, best_step, best_gain = -1, 0, least
    i_tile = tile_of[i]
    moved = np.empty(2, np.int64)
    moved[0], moved[1] = _room_after(
        q[i], i_step, room[i_tile], low[i], high[i], weight_low[i], weight_high[i]
    )
    alone = moved[0] >= 0 and moved[1] >= 0
    begin = 0 if alone else edges[i_tile]
    end = len(q) if alone else edges[i_tile + 1]
    for first in range(begin, end, GROUP):
        last = min(first + GROUP, end)
        if not _any_above(gains[first:last], best_gain - i_gain):
            continue
        for j in range(first, last):
            if gains[j] + i_gain <= best_gain or j == i:
                continue
            slope = half_gradient[j] + i_step * size[i] * line[j]
            left = moved if tile_of[j] == i_tile else room[tile_of[j]]
            step = -1 if slope > 0 else 1
            gain = i_gain + gains[j]
            for _ in range(2):
                above, below = _room_after(
                    q[j], step, left, low[j], high[j], weight_low[j], weight_high[j]
                )
                if above >= 0 and below >= 0:
                    best, best_step, best_gain = j, step, gain
                    break
                # The other direction may free what this one lacks.
                step = -step
                gain -= 4 * size[j] * abs(slope)
                if gain <= best_gain:
                    break
    return best, best_step, best_gain


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _move(k, step, q, half_gradient, line, size, room, low, high):
    """Takes one step: integers, room and gradient."""
    new = q[k] + step
    room[0] += max(q[k] * low, q[k] * high) - max(new * low, new * high)
    room[1] += min(new * low, new * high) - min(q[k] * low, q[k] * high)
    q[k] = new
    change = step * size[k]
    for other in range(len(line)):
        half_gradient[other] += change * line[other]


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _best_move(
    starts, least, q, half_gradient, hessian, size, diagonal, gains,
    room, edges, tile_of, low, high, weight_low, weight_high,
):  # fmt: skip
    """(i, step of i, j, step of j, gain): the best single step, else the first pair found.

    j = -1 for a single step, i = -1 if nothing lowers the loss; gains and starts are written.
    """
    _gains(half_gradient, 0.0, diagonal, size, diagonal, gains)
    i, gain = _best_single(
        q, half_gradient, gains, room, tile_of, low, high, weight_low, weight_high, least, starts
    )
    if i >= 0:
        return i, (-1 if half_gradient[i] > 0 else 1), -1, 0, gain
    first_gains = gains[starts]
    for place in range(PAIR_STARTS):
        i = starts[place]
        if i < 0:
            break
        i_step = -1 if half_gradient[i] > 0 else 1
        line = hessian[i]
        _gains(half_gradient, i_step * size[i], line, size, diagonal, gains)
        j, j_step, gain = _best_partner(
            i, i_step, first_gains[place], least, q, half_gradient, line, size,
            gains, room, edges, tile_of, low, high, weight_low, weight_high,
        )  # fmt: skip
        if j >= 0:
            return i, i_step, j, j_step, gain
    return -1, 0, -1, 0, 0.0


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _begin(
    q, half_gradient, wanted, hessian, scale, tile_of, limits, low, high, diagonal, size, room
):
    """The loss of one row; writes diagonal, size, and the room that its integers leave."""
    room[:, 0] = limits
    room[:, 1] = limits
    loss = 0.0
    for k in range(len(q)):
        tile = tile_of[k]
        diagonal[k] = hessian[k, k]
        size[k] = scale[tile]
        room[tile, 0] -= max(q[k] * low[k], q[k] * high[k])
        room[tile, 1] += min(q[k] * low[k], q[k] * high[k])
        loss += size[k] * q[k] * (half_gradient[k] - wanted[k])
    return loss


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def descend(
    hessian,
    wanted,
    integers,
    scale,
    half_gradient,
    factor,
    losses,
    edges,
    tile_of,
    limits,
    input_low,
    input_high,
    weight_low,
    weight_high,
    most_moves,
    refits,
):
    """Local search of every row.

    Args:
        hessian: [groups, K, K], symmetric.
        wanted: float64 [groups, rows, K], w G^T.
        integers: int64 [groups, rows, K], feasible; updated.
        scale: float64 [groups, rows, tiles].
        half_gradient: float64 [groups, rows, K], x H - w G^T; overwritten.
        factor: float64 [groups, rows], what the scale was multiplied by; written.
        losses: float64 [groups, rows], x H x - 2 x G w; written.
        edges: int64 [tiles + 1], first column of every tile, and K behind the last.
        tile_of: int64 [K].
        limits: int64 [tiles], largest magnitude of each accumulator.
        input_low, input_high: int64 [groups, K]; zero in tiles without a limit.
        weight_low, weight_high: int64 [K].
        most_moves: moves per row after which it is left as it is.
        refits: whether the scale may move.
    """
    groups, rows, columns = integers.shape
    room = np.empty((scale.shape[2], 2), np.int64)
    size = np.empty(columns)
    gains = np.empty(columns)
    diagonal = np.empty(columns)
    starts = np.empty(PAIR_STARTS, np.int64)
    for task in range(groups * rows):
        g = task // rows
        row = task % rows
        q = integers[g, row]
        r = half_gradient[g, row]
        low, high = input_low[g], input_high[g]
        loss = _begin(
            q, r, wanted[g, row], hessian[g], scale[g, row], tile_of, limits, low, high,
            diagonal, size, room,
        )  # fmt: skip
        factor[g, row] = 1.0
        moves = 0
        settled = not refits
        while moves < most_moves:
            if refits and moves % MOVES_PER_REFIT == 0:
                ratio, loss = _refit(q, size, r, wanted[g, row])
                factor[g, row] *= ratio
            least = LEAST_GAIN * abs(loss)
            i, i_step, j, j_step, gain = _best_move(
                starts, least, q, r, hessian[g], size, diagonal, gains,
                room, edges, tile_of, low, high, weight_low, weight_high,
            )  # fmt: skip
            if i < 0:
                if settled:
                    break
                # The fit has changed the gains: search once more before stopping.
                ratio, loss = _refit(q, size, r, wanted[g, row])
                factor[g, row] *= ratio
                settled = True
                continue
            settled = not refits
            _move(i, i_step, q, r, hessian[g, i], size, room[tile_of[i]], low[i], high[i])
            if j >= 0:
                _move(j, j_step, q, r, hessian[g, j], size, room[tile_of[j]], low[j], high[j])
            loss -= gain
            moves += 1
        losses[g, row] = loss
