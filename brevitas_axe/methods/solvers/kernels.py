"""Compiled CPU kernels of the solvers.

Rules of this file: arrays are C-contiguous and passed whole, with index ranges, so that each kernel
is compiled once per float type; the innermost loop runs over rows, which are contiguous; every
number that a guarantee rests on is int64; `contract` is the only fast-math flag where a NaN must
stay visible. The caller runs the kernels in threads (threads.py).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from brevitas_axe.methods.solvers.kernel_cache import cached_kernel

# Rows that are carried together: a block of 64 columns of them stays in the second-level cache.
ROWS_AT_ONCE = 128
# Magnitudes are clipped to this before they become integers, so that a product stays below 2^62.
LARGEST_MAGNITUDE = 2.0**30


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _add(total, factor, values):
    """Adds factor * values."""
    for r in range(len(total)):
        total[r] += factor * values[r]


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _shrink(corrected, wanted, pivot, scale, threshold, magnitudes):
    """What one column is to be, and its magnitudes in units of the scale less the threshold."""
    largest = magnitudes.dtype.type(LARGEST_MAGNITUDE)
    for r in range(len(corrected)):
        corrected[r] = wanted[r] - corrected[r] / pivot if pivot != 0 else pivot
        over = max(abs(corrected[r]) - threshold[r], magnitudes.dtype.type(0))
        magnitudes[r] = min(over / scale[r], largest)


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _choose(magnitudes, corrected, low, high, least, greatest, aboves, belows, chosen, values):
    """Integers of one column, and the room that they leave.

    Args:
        magnitudes: [rows] in units of the scale; cut to what the accumulator still takes.
        corrected: [rows], whose sign the integers get.
        low, high: int64 magnitudes of the smallest and the largest input.
        least, greatest: int64 magnitudes of the smallest and the largest integer.
        aboves, belows: int64 [rows], room of each accumulator; updated.
        chosen: int32 [rows]; written.
        values: [rows], the same in the type of the weights; written.
    """
    for r in range(len(corrected)):
        q = 0
        if magnitudes[r] > 0:
            negative = corrected[r] < 0
            grow_above = low if negative else high
            grow_below = high if negative else low
            most = np.int64(np.ceil(magnitudes[r]))
            if most * grow_above > aboves[r] or most * grow_below > belows[r]:
                most -= 1
                if most > 0 and grow_above > 0:
                    most = min(most, aboves[r] // grow_above)
                if most > 0 and grow_below > 0:
                    most = min(most, belows[r] // grow_below)
                magnitudes[r] = min(magnitudes[r], most)
            q = min(np.int64(np.rint(magnitudes[r])), most)
            q = min(q, least if negative else greatest)
            aboves[r] -= q * grow_above
            belows[r] -= q * grow_below
            q = -q if negative else q
        chosen[r] = q
        values[r] = q


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _pass_on(
    magnitudes, values, corrected, scale, pivot, target, forgets_shrinkage, residual, error
):
    """Writes the error of one column for the columns to come, and adds to the residual.

    Args:
        magnitudes: [rows], in units of the scale, after threshold and budget.
        values: [rows], the integers in the type of the weights.
        corrected, scale, target: [rows].
        pivot: of the column.
        forgets_shrinkage: whether the error leaves out what threshold and budget took.
        residual: float64 [rows]; updated.
        error: [rows]; written.
    """
    for r in range(len(corrected)):
        value = scale[r] * values[r]
        miss = pivot * (value - corrected[r])
        residual[r] += miss * miss
        error[r] = value - target[r]
        if forgets_shrinkage:
            kept = np.copysign(scale[r] * magnitudes[r], corrected[r])
            error[r] += corrected[r] - kept


@cached_kernel
@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def quantize_block(
    start,
    stop,
    backward,
    forgets_shrinkage,
    near,
    pivot,
    carried,
    base,
    target,
    tile_of,
    scale,
    threshold,
    input_low,
    input_high,
    weight_low,
    weight_high,
    room_above,
    room_below,
    integers,
    error,
    residual,
):
    """Decides the columns [start, stop) for every group and row, one column after the other.

    Column t gets c_t = base_t - (carried_t + sum_j near_jt error_j) / pivot_t over the columns j of
    the block decided before it; c_t is shrunk by the threshold, cut to what the accumulator still
    takes, and rounded half to even.

    Args:
        start, stop: columns of this block.
        backward: whether the last column of the block is decided first.
        forgets_shrinkage: whether the error leaves out what threshold and budget took from c_t.
        near: [groups, K, columns of a block], each column's couplings with those of its block.
        pivot: [groups, K]; zero marks a dead input, whose integer is 0.
        carried: [groups, stop - start, rows], the sum over the columns of earlier blocks.
        base, target: [groups, K, rows].
        tile_of: int64 [groups, K].
        scale, threshold: [groups, tiles, rows].
        input_low, input_high: int64 [groups, K].
        weight_low, weight_high: int64 [groups, K].
        room_above, room_below: int64 [groups, tiles, rows], what the largest and the smallest
            possible sum may still grow by; updated.
        integers: int32 [groups, K, rows]; written.
        error: [groups, K, rows], s q - target; written.
        residual: float64 [groups, rows], the sum of (pivot_t (c_t - s q_t))^2; updated.
    """
    groups, _, rows = base.shape
    chunks = (rows + ROWS_AT_ONCE - 1) // ROWS_AT_ONCE
    magnitudes = np.empty(ROWS_AT_ONCE, base.dtype)
    values = np.empty(ROWS_AT_ONCE, base.dtype)
    for task in range(groups * chunks):
        g = task // chunks
        # Loops run over slices: only with those does the compiler use vector instructions.
        some = slice((task % chunks) * ROWS_AT_ONCE, min((task % chunks + 1) * ROWS_AT_ONCE, rows))
        for step in range(stop - start):
            t = stop - start - 1 - step if backward else step
            corrected = carried[g, t, some]
            for before in range(step):
                j = stop - start - 1 - before if backward else before
                _add(corrected, near[g, start + j, t], error[g, start + j, some])
            k = start + t
            tile = tile_of[g, k]
            p = pivot[g, k]
            s = scale[g, tile, some]
            _shrink(corrected, base[g, k, some], p, s, threshold[g, tile, some], magnitudes)
            _choose(
                magnitudes, corrected, -input_low[g, k], input_high[g, k], -weight_low[g, k],
                weight_high[g, k], room_above[g, tile, some], room_below[g, tile, some],
                integers[g, k, some], values,
            )  # fmt: skip
            _pass_on(
                magnitudes, values, corrected, s, p, target[g, k, some], forgets_shrinkage,
                residual[g, some], error[g, k, some],
            )  # fmt: skip


@cached_kernel
@njit(nogil=True, cache=True, fastmath={"contract", "reassoc", "nsz"}, error_model="numpy")
def l1_thresholds(weight, edges, radius, threshold):
    """Threshold of the Euclidean projection of every centred tile on an l1 ball.

    Michelot's iteration: the threshold of the active entries only grows, and the entries below it
    leave, until none does (Michelot 1986, doi 10.1007/BF00938486).

    Args:
        weight: [n, K].
        edges: int64 [tiles + 1], first entry of every tile, and K behind the last; a short tile is
            centred as it is.
        radius: [n, tiles] of the balls, in the units of weight.
        threshold: [n, tiles]; written. Zero where the tile is inside its ball.
    """
    n = weight.shape[0]
    tiles = radius.shape[1]
    for task in range(n * tiles):
        row = task // tiles
        tile = task % tiles
        first = edges[tile]
        last = edges[tile + 1]
        mean = 0.0
        for k in range(first, last):
            mean += weight[row, k]
        mean /= last - first
        theta = 0.0
        active = 0
        while True:
            total = 0.0
            count = 0
            for k in range(first, last):
                size = abs(weight[row, k] - mean)
                if size > theta:
                    total += size
                    count += 1
            # In exact numbers the active set only shrinks. Rounding may break that, and the loop
            # might then never end.
            if count == 0 or count >= active > 0 or (active == 0 and total <= radius[row, tile]):
                break
            active = count
            theta = (total - radius[row, tile]) / count
        threshold[row, tile] = theta
