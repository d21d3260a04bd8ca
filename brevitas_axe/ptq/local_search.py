"""Feasible local search: single integers and pairs that lower the exact loss within the budget.

Steepest descent over moves of +-1. Where the best move does not fit the accumulator, it is paired
with one that makes room, or that corrects it through the cross term of the second moments. In
between, the scale is fitted again in closed form, s <- s (x b) / (x H x) for x = s q, b = w G^T.
"""

from __future__ import annotations

import numpy as np
import torch
from numba import njit
from torch import Tensor

from brevitas_axe.ptq.problem import LayerProblem
from brevitas_axe.ptq.threads import over_rows

# First halves of pairs that are tried, best first, before a row is given up.
PAIR_STARTS = 8
# Moves that lower the loss by less than this share are not worth their time.
LEAST_GAIN = 1e-5


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def _fits(q, step, above, below, low, high, weight_low, weight_high):
    """(whether q + step fits, room left above, room left below), exact."""
    new = q + step
    if new < weight_low or new > weight_high:
        return False, above, below
    above += max(q * low, q * high) - max(new * low, new * high)
    below += min(new * low, new * high) - min(q * low, q * high)
    return above >= 0 and below >= 0, above, below


@njit(nogil=True, cache=True, fastmath={"contract"}, error_model="numpy")
def descend(
    hessian,
    wanted,
    integers,
    scale,
    slope,
    factor,
    tile_length,
    input_low,
    input_high,
    weight_low,
    weight_high,
    limit,
    most_moves,
    refits,
):
    """Local search of every row; see the module.

    Args:
        hessian: [groups, K, K], symmetric.
        wanted: [groups, rows, K] float64, b = w G^T.
        integers: int32 [groups, rows, K], feasible; updated.
        scale: float64 [groups, rows, tiles].
        slope: float64 [groups, rows, K], x H; updated.
        factor: float64 [groups, rows], what the scale was multiplied by; written.
        tile_length: inputs per tile.
        input_low, input_high: int64 [groups, K].
        weight_low, weight_high: int64.
        limit: int64, largest magnitude of the accumulator.
        most_moves: moves per row after which it is left as it is.
        refits: whether the scale may move.
    """
    groups, rows, columns = integers.shape
    tiles = scale.shape[2]
    above = np.empty(tiles, np.int64)
    below = np.empty(tiles, np.int64)
    step_size = np.empty(columns)
    start_gain = np.empty(PAIR_STARTS)
    start_column = np.empty(PAIR_STARTS, np.int64)
    for task in range(groups * rows):
        g = task // rows
        row = task % rows
        q = integers[g, row]
        b = wanted[g, row]
        y = slope[g, row]
        low = input_low[g]
        high = input_high[g]
        moments = hessian[g]
        above[:] = limit
        below[:] = limit
        for k in range(columns):
            tile = k // tile_length
            step_size[k] = scale[g, row, tile]
            above[tile] -= max(q[k] * low[k], q[k] * high[k])
            below[tile] += min(q[k] * low[k], q[k] * high[k])
        total = 1.0
        loss = 0.0
        for k in range(columns):
            loss += step_size[k] * q[k] * (y[k] - 2 * b[k])
        moves = 0
        stalled = False
        while moves < most_moves:
            if refits and (stalled or moves % 16 == 0):
                along = 0.0
                energy = 0.0
                for k in range(columns):
                    along += step_size[k] * q[k] * b[k]
                    energy += step_size[k] * q[k] * y[k]
                if along > 0 and energy > 0:
                    ratio = along / energy
                    total *= ratio
                    loss = -along * ratio
                    for k in range(columns):
                        step_size[k] *= ratio
                        y[k] *= ratio

            # Best single move that fits; those that do not are kept as first halves of pairs.
            least = LEAST_GAIN * abs(loss)
            best_gain = least
            best = -1
            best_step = 0
            start_gain[:] = -np.inf
            start_column[:] = -1
            for k in range(columns):
                s = step_size[k]
                gradient = y[k] - b[k]
                gain = s * (2 * abs(gradient) - s * moments[k, k])
                if gain <= min(best_gain, start_gain[-1]):
                    continue
                step = -1 if gradient > 0 else 1
                tile = k // tile_length
                fits, _, _ = _fits(
                    q[k], step, above[tile], below[tile], low[k], high[k], weight_low, weight_high
                )
                if fits and gain > best_gain:
                    best_gain = gain
                    best = k
                    best_step = step
                if gain > start_gain[-1] and weight_low <= q[k] + step <= weight_high:
                    place = PAIR_STARTS - 1
                    while place > 0 and start_gain[place - 1] < gain:
                        start_gain[place] = start_gain[place - 1]
                        start_column[place] = start_column[place - 1]
                        place -= 1
                    start_gain[place] = gain
                    start_column[place] = k

            partner = -1
            partner_step = 0
            if best < 0:
                for place in range(PAIR_STARTS):
                    i = start_column[place]
                    if i < 0:
                        break
                    i_step = -1 if y[i] - b[i] > 0 else 1
                    i_size = i_step * step_size[i]
                    i_tile = i // tile_length
                    _, i_above, i_below = _fits(
                        q[i], i_step, above[i_tile], below[i_tile], low[i], high[i],
                        weight_low, weight_high,
                    )
                    alone = i_above >= 0 and i_below >= 0
                    for j in range(columns):
                        s = step_size[j]
                        gradient = y[j] - b[j] + i_size * moments[i, j]
                        steep = s * (2 * abs(gradient))
                        both = start_gain[place] - s * s * moments[j, j]
                        if both + steep <= best_gain or j == i:
                            continue
                        tile = j // tile_length
                        if not alone and tile != i_tile:
                            continue
                        step = -1 if gradient > 0 else 1
                        for turn in range(2):
                            if turn == 1:
                                step = -step
                                if both - steep <= best_gain:
                                    break
                            same = tile == i_tile
                            fits, _, _ = _fits(
                                q[j], step, i_above if same else above[tile],
                                i_below if same else below[tile], low[j], high[j],
                                weight_low, weight_high,
                            )
                            if fits:
                                best_gain = both + steep if turn == 0 else both - steep
                                best, best_step, partner, partner_step = i, i_step, j, step
                                break
            if best < 0:
                if stalled or not refits:
                    break
                stalled = True
                continue
            stalled = False
            for half in range(2):
                k = best if half == 0 else partner
                if k < 0:
                    break
                step = best_step if half == 0 else partner_step
                tile = k // tile_length
                _, above[tile], below[tile] = _fits(
                    q[k], step, above[tile], below[tile], low[k], high[k], weight_low, weight_high
                )
                q[k] += step
                size = step * step_size[k]
                line = moments[k]
                for other in range(columns):
                    y[other] += size * line[other]
            loss -= best_gain
            moves += 1
        factor[g, row] = total


def improve_integers(
    problem: LayerProblem,
    hessian: Tensor,
    wanted: Tensor,
    integers: Tensor,
    scale: Tensor,
    most_moves: int,
) -> tuple[Tensor, Tensor]:
    """Local search from feasible integers.

    Args:
        problem: gives the budget.
        hessian: [groups, K, K] moments of the loss, in the dtype to work in.
        wanted: float64 [groups, rows, K], w G^T.
        integers: int32 [groups, rows, K], inside the budget.
        scale: [groups, rows, tiles].
        most_moves: moves per row at most.

    Returns:
        (integers, what every scale of a row is to be multiplied by [groups, rows] float64).
    """
    low, high = problem.input_range
    bits = problem.accumulator_bit_width
    if bits is None:
        low, high = torch.zeros_like(low), torch.zeros_like(high)
    factor = torch.ones(integers.shape[:2], dtype=torch.float64)
    improved = torch.empty_like(integers)

    def work(some_groups: slice, some_rows: slice) -> None:
        part = (some_groups, some_rows)
        moments = hessian[some_groups].contiguous()
        start = integers[part].contiguous().clone()
        part_scale = scale[part].double().contiguous()
        value = start * part_scale[:, :, problem.tile_of_column]
        part_factor = factor[part].contiguous()
        descend(
            moments.numpy(),
            wanted[part].contiguous().numpy(),
            start.numpy(),
            part_scale.numpy(),
            torch.bmm(value.to(moments.dtype), moments).double().numpy(),
            part_factor.numpy(),
            problem.tile_length,
            low[some_groups].contiguous().numpy(),
            high[some_groups].contiguous().numpy(),
            problem.weight_low,
            problem.weight_high,
            0 if bits is None else 2 ** (bits - 1) - 1,
            most_moves,
            not (problem.shared_scale or problem.power_of_two),
        )
        improved[part] = start
        factor[part] = part_factor

    over_rows(work, *integers.shape[:2])
    return improved, factor
