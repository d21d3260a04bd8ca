"""Compiled kernels of the local search (see local_search.py, and kernels.py for the rules).

Notation: x = s q are the weights that integers q stand for, r = x H - w G^T half the gradient of
the loss; a step d = +-1 of one integer lowers the loss by -2 d s r - s^2 H_kk.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from brevitas_axe.methods.solvers.kernel_cache import cached_kernel

# First halves of pairs that are tried, best first: the first that finds a partner is taken.
PAIR_STARTS = 8
# A move must lower the loss by more than this share of it; smaller gains do not repay their time.
LEAST_GAIN = 1e-5
# The scale is fitted again after this many moves.
MOVES_PER_REFIT = 16
# Columns whose gains are compared at once.
GROUP = 64
# The need of a step that no room is enough for.
IMPOSSIBLE = np.iinfo(np.int64).max


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
def _needs(q, step, low, high, weight_low, weight_high):
    """(above, below): the room that one step of an integer takes, exact; it gives back if negative.

    No room is enough for a step out of the range of the integers.
    """
    new = q + step
    if new < weight_low or new > weight_high:
        return IMPOSSIBLE, IMPOSSIBLE
    above = max(new * low, new * high) - max(q * low, q * high)
    below = min(q * low, q * high) - min(new * low, new * high)
    return above, below


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _write_needs(k, q, needs, low, high, weight_low, weight_high):
    """What the steps of one column need: [up above, up below, down above, down below, K]."""
    for place, step in ((0, 1), (2, -1)):
        needs[place, k], needs[place + 1, k] = _needs(
            q[k], step, low[k], high[k], weight_low[k], weight_high[k]
        )


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _write_open(room, needs, tile, up, down):
    """Writes 0 where a step fits the room, and -inf where it does not.

    The loops of this and the next functions have no branch and few arrays, so that they become
    vector instructions: a compiler that cannot know that arrays do not overlap asks for each pair.
    """
    for place, opened in ((0, up), (2, down)):
        above, below, written = needs[place, tile], needs[place + 1, tile], opened[tile]
        for k in range(len(written)):
            fits = (above[k] <= room[0]) & (below[k] <= room[1])
            written[k] = 0.0 if fits else -np.inf


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _write_gains(slopes, size, diagonal, gains):
    """Each column's gain by its better step, whether it fits or not."""
    for k in range(len(gains)):
        gains[k] = size[k] * (2 * abs(slopes[k]) - size[k] * diagonal[k])


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _write_single(slopes, gains, up, down, fitting):
    """The gains of the better steps, -inf where they do not fit."""
    for k in range(len(fitting)):
        fitting[k] = gains[k] + (down[k] if slopes[k] > 0 else up[k])


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _write_second(base, slopes, size, gains, up, down, fitting):
    """Base and the gain by the better of the steps that fit; -inf where none does."""
    for k in range(len(fitting)):
        falls = slopes[k] > 0
        value = base + gains[k]
        # The other direction may free what this one lacks.
        other = value - 4 * size[k] * abs(slopes[k]) + (up[k] if falls else down[k])
        value += down[k] if falls else up[k]
        fitting[k] = value if value > other else other


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
def _largest(values, least):
    """(position, value) of the first largest value above `least`; position -1 for none."""
    best = -1
    for first in range(0, len(values), GROUP):
        last = min(first + GROUP, len(values))
        if _any_above(values[first:last], least):
            for k in range(first, last):
                if values[k] > least:
                    best, least = k, values[k]
    return best, least


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _first_halves(slopes, gains, needs, starts):
    """Writes the columns with the largest gains whether they fit or not, best first; else -1."""
    starts[:] = -1
    cut = -np.inf
    for first in range(0, len(gains), GROUP):
        last = min(first + GROUP, len(gains))
        if not _any_above(gains[first:last], cut):
            continue
        for k in range(first, last):
            gain = gains[k]
            if gain <= cut or needs[2 if slopes[k] > 0 else 0, k] == IMPOSSIBLE:
                continue
            place = PAIR_STARTS - 1
            while place > 0 and (starts[place - 1] < 0 or gains[starts[place - 1]] < gain):
                starts[place] = starts[place - 1]
                place -= 1
            starts[place] = k
            if starts[-1] >= 0:
                cut = gains[starts[-1]]


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _move(k, step, q, slopes, line, size, room, needs):
    """Takes one step: integers, room and gradient."""
    place = 0 if step > 0 else 2
    room[0] -= needs[place, k]
    room[1] -= needs[place + 1, k]
    q[k] += step
    change = step * size[k]
    for other in range(len(line)):
        slopes[other] += change * line[other]


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _best_partner(
    i, i_gain, least, tile, room, slopes, line, size, diagonal, needs, up, down,
    pair_slopes, pair_up, pair_down, gains, fitting,
):  # fmt: skip
    """(step of i, j, step of j, gain): the best second step after i's; j = -1 for none.

    The room is that after i's step, which a partner of its own tile may have to make first.
    """
    step, place = (-1, 2) if slopes[i] > 0 else (1, 0)
    left = room[0] - needs[place, i], room[1] - needs[place + 1, i]
    columns = len(line)
    part = slice(0, columns) if left[0] >= 0 and left[1] >= 0 else tile
    _write_open(left, needs, tile, pair_up, pair_down)
    coupling = step * size[i]
    for k in range(part.start, part.stop):
        pair_slopes[k] = slopes[k] + coupling * line[k]
    _write_gains(pair_slopes[part], size[part], diagonal[part], gains[part])
    _write_second(
        i_gain, pair_slopes[tile], size[tile], gains[tile], pair_up[tile], pair_down[tile],
        fitting[tile],
    )  # fmt: skip
    for other in (slice(part.start, tile.start), slice(tile.stop, part.stop)):
        _write_second(
            i_gain, pair_slopes[other], size[other], gains[other], up[other], down[other],
            fitting[other],
        )  # fmt: skip
    fitting[i] = -np.inf
    j, gain = _largest(fitting[part], least)
    if j < 0:
        return step, -1, 0, 0.0
    j += part.start
    own = tile.start <= j < tile.stop
    falls = pair_slopes[j] > 0
    ahead = (pair_down[j] if own else down[j]) if falls else (pair_up[j] if own else up[j])
    return step, j, -1 if falls == (ahead == 0.0) else 1, gain


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _best_move(
    starts, least, slopes, hessian, size, diagonal, room, edges, tile_of, needs, up, down,
    pair_slopes, pair_up, pair_down, gains, fitting,
):  # fmt: skip
    """(i, step of i, j, step of j, gain): the best single step, else the first pair found.

    j = -1 for a single step, i = -1 if nothing lowers the loss.
    """
    _write_gains(slopes, size, diagonal, gains)
    _write_single(slopes, gains, up, down, fitting)
    i, gain = _largest(fitting, least)
    if i >= 0:
        return i, (-1 if slopes[i] > 0 else 1), -1, 0, gain
    _first_halves(slopes, gains, needs, starts)
    first_gains = gains[starts]
    for place in range(PAIR_STARTS):
        i = starts[place]
        if i < 0:
            break
        tile = slice(edges[tile_of[i]], edges[tile_of[i] + 1])
        i_step, j, j_step, gain = _best_partner(
            i, first_gains[place], least, tile, room[tile_of[i]], slopes, hessian[i], size,
            diagonal, needs, up, down, pair_slopes, pair_up, pair_down, gains, fitting,
        )  # fmt: skip
        if j >= 0:
            return i, i_step, j, j_step, gain
    return -1, 0, -1, 0, 0.0


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _begin(q, slopes, wanted, hessian, scale, tile_of, limits, low, high, diagonal, size, room):
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
        loss += size[k] * q[k] * (slopes[k] - wanted[k])
    return loss


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _begin_steps(q, needs, room, edges, low, high, weight_low, weight_high, up, down):
    """Writes what the steps of all columns need, and which of them fit."""
    for k in range(len(q)):
        _write_needs(k, q, needs, low, high, weight_low, weight_high)
    for tile in range(len(room)):
        _write_open(room[tile], needs, slice(edges[tile], edges[tile + 1]), up, down)


@cached_kernel
@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def descend(
    hessian, wanted, integers, scale, half_gradient, factor, losses, edges, tile_of, limits,
    input_low, input_high, weight_low, weight_high, most_moves, refits,
):  # fmt: skip
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
    room = np.empty((len(limits), 2), np.int64)
    needs = np.empty((4, columns), np.int64)
    # One by one: rows of a larger array would not count as contiguous.
    size, diagonal = np.empty(columns), np.empty(columns)
    gains, fitting, pair_slopes = np.empty(columns), np.empty(columns), np.empty(columns)
    up, down = np.empty(columns), np.empty(columns)
    pair_up, pair_down = np.empty(columns), np.empty(columns)
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
        _begin_steps(q, needs, room, edges, low, high, weight_low, weight_high, up, down)
        factor[g, row] = 1.0
        moves = 0
        settled = not refits
        while moves < most_moves:
            if refits and moves % MOVES_PER_REFIT == 0:
                ratio, loss = _refit(q, size, r, wanted[g, row])
                factor[g, row] *= ratio
            least = LEAST_GAIN * abs(loss)
            i, i_step, j, j_step, gain = _best_move(
                starts, least, r, hessian[g], size, diagonal, room, edges, tile_of, needs,
                up, down, pair_slopes, pair_up, pair_down, gains, fitting,
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
            for k, step in ((i, i_step), (j, j_step)):
                if k >= 0:
                    tile = slice(edges[tile_of[k]], edges[tile_of[k] + 1])
                    _move(k, step, q, r, hessian[g, k], size, room[tile_of[k]], needs)
                    _write_needs(k, q, needs, low, high, weight_low, weight_high)
                    _write_open(room[tile_of[k]], needs, tile, up, down)
            loss -= gain
            moves += 1
        losses[g, row] = loss
