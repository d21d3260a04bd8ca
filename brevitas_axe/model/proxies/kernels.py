"""`projection.project` compiled for the CPU.

Arrays are C-contiguous. Whole numbers are kept in the float type of the arrays, in which all of
their sums are exact, so that the compiler may reorder them; costs are int64.
"""

from __future__ import annotations

import numpy as np
from numba import njit

_STEPS = 24  # at most; five are usual
_REORDERS = {"contract", "reassoc", "nsz"}


@njit(nogil=True, cache=True, error_model="numpy")
def project_tiles(integers, values, tile_size, one_sided, norm_cost, imbalance_cost, bound, over):
    """Projects every tile that does not fit, in place.

    Args:
        integers: whole numbers [rows, K]; updated.
        values: what they were rounded from [rows, K].
        tile_size: inputs per tile; the last tile may be short.
        one_sided: whether positive and negative weights have budgets of their own.
        norm_cost, imbalance_cost: coefficients of S⁺ + S⁻ and of |S⁺ − S⁻| in the cost.
        bound: largest cost that fits.
        over: booleans [rows, tiles]; written, True for tiles that did not fit.
    """
    sizes, signs = np.empty(tile_size, values.dtype), np.empty(tile_size, values.dtype)
    for task in range(over.size):
        row, part = task // over.shape[1], task % over.shape[1]
        some = slice(part * tile_size, min(part * tile_size + tile_size, integers.shape[1]))
        chosen, wanted = integers[row, some], values[row, some]
        over[row, part] = cost_of(chosen, norm_cost, imbalance_cost) > bound
        if over[row, part]:
            a, s = sizes[: len(chosen)], signs[: len(chosen)]
            for turn in range(2 if one_sided else 1):
                select(chosen, wanted, side_of(turn, one_sided, a), a, s)
                shrink(a, s, norm_cost, imbalance_cost, bound, chosen)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def cost_of(integers, norm_cost, imbalance_cost):
    """Cost of whole numbers [T]."""
    absolute = signed = integers.dtype.type(0)
    for k in range(len(integers)):
        absolute += abs(integers[k])
        signed += integers[k]
    return np.int64(absolute) * norm_cost + abs(np.int64(signed)) * imbalance_cost


@njit(nogil=True, cache=True)
def side_of(turn, one_sided, values):
    """Which weights are projected in this pass: 1 positive, -1 negative, 0 all (values' dtype)."""
    return values.dtype.type((1 - 2 * turn) if one_sided else 0)


@njit(nogil=True, cache=True, fastmath=_REORDERS)
def sign_on(side, integer):
    """Sign of the integer if it belongs to this side, else 0 (in the dtype of `side`)."""
    sign = type(side)(1) if integer > 0 else type(side)(-1 if integer < 0 else 0)
    return type(side)(0) if sign * side < 0 else sign


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def select(integers, values, side, sizes, signs):
    """Signs and magnitudes of the weights that share a budget, 0 for the others.

    Args:
        integers, values: [T].
        side: from `side_of`.
        sizes, signs: [T]; written. A size never rounds to more than its integer.
    """
    zero, almost = values.dtype.type(0), values.dtype.type(0.499)
    for k in range(len(values)):
        sign = sign_on(side, integers[k])
        signs[k] = sign
        sizes[k] = min(max(values[k] * sign, zero), sign * integers[k] + almost)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS | {"nnan"})
def largest(sizes):
    """Largest of the sizes [T]. None is NaN after `select`, so that the loop can be vectorised."""
    most = sizes.dtype.type(0)
    for k in range(len(sizes)):
        most = max(most, sizes[k])
    return most


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def shrunk_cost(sizes, signs, by, norm_cost, imbalance_cost):
    """Cost of the integers nearest to max(sizes − by, 0)."""
    zero, half = sizes.dtype.type(0), sizes.dtype.type(0.5)
    absolute, signed = zero, zero
    for k in range(len(sizes)):
        q = np.floor(max(sizes[k] - by + half, zero))
        absolute += q
        signed += q * signs[k]
    return np.int64(absolute) * norm_cost + abs(np.int64(signed)) * imbalance_cost


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def write(sizes, signs, by, integers):
    """Writes the integers nearest to max(sizes − by, 0), where signs is not 0."""
    zero, half = sizes.dtype.type(0), sizes.dtype.type(0.5)
    for k in range(len(sizes)):
        q = signs[k] * np.floor(max(sizes[k] - by + half, zero))
        integers[k] = integers[k] if signs[k] == zero else q


@njit(nogil=True, cache=True, error_model="numpy")
def shrink(sizes, signs, norm_cost, imbalance_cost, bound, integers):
    """Writes the nearest integers that fit, where signs is not 0.

    Args:
        sizes, signs: [T], from `select`; sizes are overwritten.
        norm_cost, imbalance_cost, bound: as in `project_tiles`.
        integers: [T]; updated.
    """
    unit = norm_cost + imbalance_cost
    zero = sizes.dtype.type(0)
    low, high = zero, largest(sizes)
    cost = shrunk_cost(sizes, signs, low, norm_cost, imbalance_cost)
    spent = cost if cost <= bound else 0  # at `high`, where every size is 0
    if cost <= bound:
        high = low
    else:
        target = np.log(bound + unit / 2)
        above, below = np.log(cost + unit / 2) - target, np.log(unit / 2) - target
        stayed = 0
        for _ in range(_STEPS):
            share = min(max(above / (above - below), 0.05), 0.95)
            middle = sizes.dtype.type(low + (high - low) * share)
            cost = shrunk_cost(sizes, signs, middle, norm_cost, imbalance_cost)
            found = np.log(cost + unit / 2) - target
            # Illinois rule: the value of an end that stays twice is halved, or it might never move.
            if cost <= bound:
                high, below, spent = middle, found, cost
                above = above / 2 if stayed > 0 else above
                stayed = 1
                if cost + unit > bound:
                    break
            else:
                low, above = middle, found
                below = below / 2 if stayed < 0 else below
                stayed = -1
    write(sizes, signs, high, integers)
    room = (bound - spent) // unit
    if room <= 0:
        return
    # Units on which the two ends differ, first weights first. The ends may be so close that
    # rounding decides; the slack never takes a size past its integer (see `select`).
    between(sizes, signs, sizes.dtype.type(low - 1e-4), high)
    for k in range(len(sizes)):
        if room <= 0:
            break
        if sizes[k] > zero:
            more = min(sizes[k], room)
            integers[k] += signs[k] * more
            room -= np.int64(more)


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def between(sizes, signs, low, high):
    """Replaces sizes by the units that low keeps and high removes, 0 where signs is 0."""
    zero, half = sizes.dtype.type(0), sizes.dtype.type(0.5)
    for k in range(len(sizes)):
        more = np.floor(sizes[k] - low + half) - np.floor(max(sizes[k] - high + half, zero))
        sizes[k] = zero if signs[k] == zero else more


@njit(nogil=True, cache=True, error_model="numpy")
def subtract_mean_tiles(gradient, integers, values, over, tile_size, one_sided, scaled):
    """Subtracts the mean signed gradient of the nonzero weights of projected tiles, in place.

    Args:
        gradient: [rows, K]; updated.
        integers: whole numbers [rows, K] as `project_tiles` left them.
        values: what they were rounded from [rows, K].
        over: booleans [rows, tiles], the tiles that were projected.
        tile_size, one_sided: as in `project_tiles`.
        scaled: [rows, tiles]; written, the sum of gradient × values in projected tiles, else 0.
    """
    for row in range(len(gradient)):
        for part in range(over.shape[1]):
            scaled[row, part] = 0
            if over[row, part]:
                some = slice(part * tile_size, min(part * tile_size + tile_size, gradient.shape[1]))
                tile_gradient, projected = gradient[row, some], integers[row, some]
                for turn in range(2 if one_sided else 1):
                    subtract_mean(tile_gradient, projected, side_of(turn, one_sided, tile_gradient))
                scaled[row, part] = product(tile_gradient, values[row, some])


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def subtract_mean(gradient, integers, side):
    """Subtracts the mean signed gradient of the nonzero weights of one side, as in `select`."""
    zero, one = gradient.dtype.type(0), gradient.dtype.type(1)
    total, count = zero, zero
    for k in range(len(gradient)):
        sign = sign_on(side, integers[k])
        total += gradient[k] * sign
        count += abs(sign)
    mean = total / max(count, one)
    for k in range(len(gradient)):
        gradient[k] -= sign_on(side, integers[k]) * mean


@njit(nogil=True, cache=True, error_model="numpy", fastmath=_REORDERS)
def product(a, b):
    """Sum of a × b."""
    total = a.dtype.type(0)
    for k in range(len(a)):
        total += a[k] * b[k]
    return total
