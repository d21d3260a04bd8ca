"""The kernels of kernels.py in Triton, for tensors on a GPU.

Same names, arguments and integers, up to ties of floating-point numbers: in float64 the integers
are those of the CPU. This module is imported only where Triton is used (see devices.py).
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from brevitas_axe.methods.solvers.kernels import LARGEST_MAGNITUDE

# Rows of one program of the panel kernel: one for each thread of its only warp, so that no column
# waits for other warps.
ROWS = 32
# Entries that one program of the threshold kernel looks at together, rows times columns of a tile:
# with more of them registers leave room for few programs at a time.
ENTRIES = 1024

# Contraction of products and sums, as in the kernels for CPUs.
OPTIONS = {"enable_fp_fusion": True}
PANEL_OPTIONS = {"num_warps": 1, **OPTIONS}

_LARGEST = tl.constexpr(LARGEST_MAGNITUDE)


@triton.jit
def _quotient(x, y):
    """The quotient as IEEE 754 rounds it; the plain division of float32 is an approximation."""
    if x.dtype == tl.float64:
        return x / y
    else:
        return tl.div_rn(x, y)


@triton.jit
def _shrink(past, wanted, pivot, scale, threshold):
    """What one column is to be, and its magnitudes in units of the scale less the threshold."""
    alive = pivot != 0
    corrected = tl.where(alive, wanted - _quotient(past, tl.where(alive, pivot, 1.0)), 0.0)
    over = tl.maximum(tl.abs(corrected) - threshold, 0.0)
    return corrected, tl.minimum(_quotient(over, scale), _LARGEST)


@triton.jit
def _choose(magnitude, negative, low, high, least, greatest, above, below):
    """Integers of one column, and the room that they leave; see kernels.py.

    Returns:
        (integers int64 [rows], magnitudes cut to what the accumulator takes, room above, below).
    """
    grow_above = tl.where(negative, low, high)
    grow_below = tl.where(negative, high, low)
    most = tl.ceil(magnitude).to(tl.int64)
    over = (most * grow_above > above) | (most * grow_below > below)
    cut = most - 1
    cut = tl.where(grow_above > 0, tl.minimum(cut, above // tl.maximum(grow_above, 1)), cut)
    cut = tl.where(grow_below > 0, tl.minimum(cut, below // tl.maximum(grow_below, 1)), cut)
    most = tl.where(over, cut, most)
    magnitude = tl.where(over, tl.minimum(magnitude, most.to(magnitude.dtype)), magnitude)
    # Half to even, which the language has no operation for.
    whole = tl.floor(magnitude)
    q = whole.to(tl.int64)
    part = magnitude - whole
    q += ((part > 0.5) | ((part == 0.5) & ((q & 1) == 1))).to(tl.int64)
    q = tl.minimum(tl.minimum(q, most), tl.where(negative, least, greatest))
    return tl.where(negative, -q, q), magnitude, above - q * grow_above, below - q * grow_below


@triton.jit
def _pass_on(q, magnitude, corrected, scale, pivot, target, FORGETS_SHRINKAGE):
    """The error of one column for the columns to come, and what it adds to the residual."""
    value = scale * q.to(scale.dtype)
    miss = (pivot * (value - corrected)).to(tl.float64)
    error = value - target
    if FORGETS_SHRINKAGE:
        kept = scale * magnitude
        error += corrected - tl.where(corrected < 0, -kept, kept)
    return error, miss * miss


@triton.jit
def _of_tile(place, inside, room_above, room_below, scale, threshold):
    """(room above, room below, scale, threshold) of a tile."""
    return (
        tl.load(room_above + place, mask=inside, other=0),
        tl.load(room_below + place, mask=inside, other=0),
        tl.load(scale + place, mask=inside, other=1.0),
        tl.load(threshold + place, mask=inside, other=0.0),
    )


@triton.jit
def _ahead(k, group, row, inside, near, base, target, pivot, columns, rows, WIDTH, AT_ONCE):
    """What column k needs that no decision changes: (couplings, base, target, pivot)."""
    place = group * columns + k
    of_rows = place * rows + row
    late = tl.arange(0, AT_ONCE)
    return (
        tl.load(near + place * WIDTH + late, mask=late < WIDTH, other=0.0),
        tl.load(base + of_rows, mask=inside, other=0.0),
        tl.load(target + of_rows, mask=inside, other=0.0),
        tl.load(pivot + place),
    )


@triton.jit(do_not_specialize=["start", "stop"])
def _panel(
    start, stop, near, pivot, carried, base, target, tile_of, scale, threshold, input_low,
    input_high, weight_low, weight_high, room_above, room_below, integers, error, residual,
    columns, rows, tiles, BACKWARD: tl.constexpr, FORGETS_SHRINKAGE: tl.constexpr,
    WIDTH: tl.constexpr, AT_ONCE: tl.constexpr, ROWS_AT_ONCE: tl.constexpr,
):  # fmt: skip
    """Decides the columns [start, stop) of one block of rows of one group.

    The sums that the columns still wait for stay in registers: each error is added to all of them
    as soon as it is known, in the order of the kernel for CPUs.
    """
    blocks = tl.cdiv(rows, ROWS_AT_ONCE)
    group = (tl.program_id(0) // blocks).to(tl.int64)
    row = (tl.program_id(0) % blocks) * ROWS_AT_ONCE + tl.arange(0, ROWS_AT_ONCE)
    inside = row < rows
    width = stop - start
    late = tl.arange(0, AT_ONCE)
    sums = tl.load(
        carried + (group * width + late[:, None]) * rows + row[None, :],
        mask=(late < width)[:, None] & inside[None, :],
        other=0.0,
    )
    lost = tl.load(residual + group * rows + row, mask=inside, other=0.0)
    t = width - 1 if BACKWARD else 0
    step = -1 if BACKWARD else 1
    couplings, wanted, aim, p = _ahead(
        start + t, group, row, inside, near, base, target, pivot, columns, rows, WIDTH, AT_ONCE
    )
    tile = tl.load(tile_of + group * columns + start + t)
    place = (group * tiles + tile) * rows + row
    above, below, s, shrinks = _of_tile(place, inside, room_above, room_below, scale, threshold)
    for _ in range(width):
        # Memory is slow beside the arithmetic of one column: fetched one column early.
        following = tl.minimum(tl.maximum(t + step, 0), width - 1)
        next_couplings, next_wanted, next_aim, next_p = _ahead(
            start + following, group, row, inside, near, base, target, pivot, columns, rows,
            WIDTH, AT_ONCE,
        )  # fmt: skip
        at = group * columns + start + t
        own = tl.load(tile_of + at)
        if own != tile:
            tl.store(room_above + place, above, mask=inside)
            tl.store(room_below + place, below, mask=inside)
            tl.debug_barrier()
            tile = own
            place = (group * tiles + tile) * rows + row
            above, below, s, shrinks = _of_tile(
                place, inside, room_above, room_below, scale, threshold
            )
        past = tl.sum(tl.where((late == t)[:, None], sums, 0.0), axis=0)
        corrected, magnitude = _shrink(past, wanted, p, s, shrinks)
        q, magnitude, above, below = _choose(
            magnitude, corrected < 0, -tl.load(input_low + at), tl.load(input_high + at),
            -tl.load(weight_low + at), tl.load(weight_high + at), above, below,
        )  # fmt: skip
        passed, missed = _pass_on(q, magnitude, corrected, s, p, aim, FORGETS_SHRINKAGE)
        lost += missed
        sums += couplings[:, None] * passed[None, :]
        tl.store(integers + at * rows + row, q.to(tl.int32), mask=inside)
        tl.store(error + at * rows + row, passed, mask=inside)
        couplings, wanted, aim, p = next_couplings, next_wanted, next_aim, next_p
        t += step
    tl.store(room_above + place, above, mask=inside)
    tl.store(room_below + place, below, mask=inside)
    tl.store(residual + group * rows + row, lost, mask=inside)


@triton.jit
def _ball_thresholds(
    weight,
    edges,
    radius,
    threshold,
    number,
    columns,
    tiles,
    ROWS_AT_ONCE: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """Thresholds of one tile in some of the rows, by Michelot's iteration."""
    tile = tl.program_id(0) % tiles
    row = (tl.program_id(0) // tiles).to(tl.int64) * ROWS_AT_ONCE + tl.arange(0, ROWS_AT_ONCE)
    inside = row < number
    first = tl.load(edges + tile)
    last = tl.load(edges + tile + 1)
    ball = tl.load(radius + row * tiles + tile, mask=inside, other=0.0).to(tl.float64)
    place = tl.arange(0, AT_ONCE)
    mean = tl.zeros((ROWS_AT_ONCE,), tl.float64)
    for begin in range(first, last, AT_ONCE):
        k = begin + place
        known = inside[:, None] & (k < last)[None, :]
        w = tl.load(weight + row[:, None] * columns + k[None, :], mask=known, other=0.0)
        mean += tl.sum(w.to(tl.float64), axis=1)
    mean /= last - first
    theta = tl.zeros((ROWS_AT_ONCE,), tl.float64)
    active = tl.zeros((ROWS_AT_ONCE,), tl.int32)
    unsettled = inside
    while tl.sum(unsettled.to(tl.int32), axis=0) > 0:  # pyright: ignore[reportOperatorIssue]
        total = tl.zeros((ROWS_AT_ONCE,), tl.float64)
        count = tl.zeros((ROWS_AT_ONCE,), tl.int32)
        for begin in range(first, last, AT_ONCE):
            k = begin + place
            known = inside[:, None] & (k < last)[None, :]
            w = tl.load(weight + row[:, None] * columns + k[None, :], mask=known, other=0.0)
            size = tl.abs(w.to(tl.float64) - mean[:, None])
            above = known & (size > theta[:, None])
            total += tl.sum(tl.where(above, size, 0.0), axis=1)
            count += tl.sum(above.to(tl.int32), axis=1)
        settled = (count >= active) & (active > 0)
        fits = (active == 0) & (total <= ball)
        unsettled = unsettled & (count > 0) & (settled == 0) & (fits == 0)
        theta = tl.where(unsettled, (total - ball) / tl.maximum(count, 1), theta)
        active = tl.where(unsettled, count, active)
    tl.store(threshold + row * tiles + tile, theta.to(threshold.dtype.element_ty), mask=inside)


def quantize_block(
    start: int,
    stop: int,
    backward: bool,
    forgets_shrinkage: bool,
    near: Tensor,
    pivot: Tensor,
    carried: Tensor,
    base: Tensor,
    target: Tensor,
    tile_of: Tensor,
    scale: Tensor,
    *rest: Tensor,
) -> None:
    """Decides the columns [start, stop); see the kernel of this name. All tensors contiguous."""
    groups, columns, rows = base.shape
    width = near.shape[-1]
    panel: Any = _panel
    # Triton starts kernels on the current device.
    with torch.cuda.device_of(base):
        panel[(groups * triton.cdiv(rows, ROWS),)](
            start,
            stop,
            near,
            pivot,
            carried,
            base,
            target,
            tile_of,
            scale,
            *rest,
            columns,
            rows,
            scale.shape[1],
            BACKWARD=backward,
            FORGETS_SHRINKAGE=forgets_shrinkage,
            WIDTH=width,
            AT_ONCE=triton.next_power_of_2(width),
            ROWS_AT_ONCE=ROWS,
            **PANEL_OPTIONS,
        )


def l1_thresholds(weight: Tensor, edges: Tensor, radius: Tensor, threshold: Tensor) -> None:
    """Threshold of the projection of every centred tile on an l1 ball; see the kernel."""
    number, tiles = radius.shape
    longest = -(-weight.shape[1] // tiles)
    at_once = min(triton.next_power_of_2(longest), ENTRIES)
    rows = ENTRIES // at_once
    kernel: Any = _ball_thresholds
    with torch.cuda.device_of(weight):
        kernel[(tiles * triton.cdiv(number, rows),)](
            weight,
            edges.to(weight.device),
            radius,
            threshold,
            number,
            weight.shape[1],
            tiles,
            ROWS_AT_ONCE=rows,
            AT_ONCE=at_once,
            **OPTIONS,
        )
