"""Matrix products whose accumulators have P bits. Pure functions on integers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numba
import numpy as np

from brevitas_axe.accumulator import outer_bit_width, tile_starts

# What an accumulator does with a sum out of its range.
Overflow = Literal["wrap", "saturate"]

_FLOAT_EXACT = 2**53
_INT64_SAFE = 2**62


@dataclass(frozen=True)
class Accumulated:
    """Result of one product.

    Attributes:
        sums: int64 [..., M, N], final values of the accumulators.
        overflows: accumulators (inner, one per output and tile, and outer) that left their range.
        largest: largest |sum| of any tile before it was wrapped or clipped.
    """

    sums: np.ndarray
    overflows: int
    largest: int


def accumulate(
    left: np.ndarray,
    right: np.ndarray,
    accumulator_bit_width: int,
    tile_size: int | None,
    overflow: Overflow,
) -> Accumulated:
    """Product left @ right with P-bit two's complement accumulators.

    Args:
        left: int64 [..., M, K].
        right: int64 [..., K, N].
        accumulator_bit_width: P of each tile's accumulator.
        tile_size: inputs per tile; the outer accumulator that adds the tiles' results has
            ⌈P + log2(K/T)⌉ bits.
        overflow: "wrap" (two's complement; only a tile's final sum matters, because addition
            modulo 2^P is associative) or "saturate" (after every product, in input order).
    """
    inputs = left.shape[-1]
    bounds = [*tile_starts(inputs, tile_size), inputs]
    largest_product = _magnitude(left) * _magnitude(right)
    total: np.ndarray | None = None
    overflows = largest = 0
    outer = outer_bit_width(accumulator_bit_width, inputs, tile_size)
    limit = _limit(accumulator_bit_width)
    for start, stop in pairwise(bounds):
        a, b = left[..., start:stop], right[..., start:stop, :]
        exact = _matmul(a, b, largest_product * (stop - start))
        largest = max(largest, _magnitude(exact))
        # No partial sum can leave the range when the sum of magnitudes stays inside.
        inside = largest_product * (stop - start) < limit
        if overflow == "wrap" or inside:
            kept, count = _wrap(exact, accumulator_bit_width)
        else:
            kept, count = _saturating_matmul(a, b, limit)
        overflows += count
        if total is None:
            total = kept
            continue
        total, count = (_wrap if overflow == "wrap" else _clip)(total + kept, outer)
        overflows += count
    # A dot product without inputs has no tile.
    empty = np.zeros((*left.shape[:-1], right.shape[-1]), np.int64)
    return Accumulated(empty if total is None else total, overflows, largest)


def _limit(bit_width: int) -> int:
    return 2 ** (bit_width - 1)


def _magnitude(array: np.ndarray) -> int:
    return max(abs(int(array.min())), abs(int(array.max()))) if array.size else 0


def _matmul(a: np.ndarray, b: np.ndarray, bound: int) -> np.ndarray:
    """Exact integer product: BLAS where float64 is exact for every partial sum, else int64."""
    if bound < _FLOAT_EXACT:
        return np.matmul(a.astype(np.float64), b.astype(np.float64)).astype(np.int64)
    if bound < _INT64_SAFE:
        return np.matmul(a, b)
    return np.matmul(a.astype(object), b.astype(object))


def _wrap(sums: np.ndarray, bit_width: int) -> tuple[np.ndarray, int]:
    """Two's complement wrap-around, and how many sums it changed."""
    limit = _limit(bit_width)
    outside = (sums < -limit) | (sums >= limit)
    count = int(np.count_nonzero(outside))
    if count == 0:
        return np.asarray(sums, np.int64), 0
    exact = sums if bit_width < 63 and sums.dtype != object else sums.astype(object)
    return np.asarray((exact + limit) % (2 * limit) - limit, np.int64), count


def _clip(sums: np.ndarray, bit_width: int) -> tuple[np.ndarray, int]:
    limit = _limit(bit_width)
    outside = (sums < -limit) | (sums >= limit)
    return np.clip(sums, -limit, limit - 1).astype(np.int64), int(np.count_nonzero(outside))


def _saturating_matmul(a: np.ndarray, b: np.ndarray, limit: int) -> tuple[np.ndarray, int]:
    """Product left @ right clipped after every product, in the order of the inputs."""
    batch = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    rows, columns, inputs = a.shape[-2], b.shape[-1], a.shape[-1]
    a = np.broadcast_to(a, (*batch, rows, inputs)).reshape(-1, rows, inputs)
    b = np.broadcast_to(b, (*batch, inputs, columns)).reshape(-1, inputs, columns)
    sums = np.empty((len(a), rows, columns), np.int64)
    # Rows of right.T are contiguous in the kernel's inner loop.
    count = _kernel()(np.ascontiguousarray(a), np.ascontiguousarray(b.swapaxes(1, 2)), limit, sums)
    return sums.reshape(*batch, rows, columns), int(count)


_compiled: list[Callable] = []


def _kernel() -> Callable:
    """The compiled loop; compiled at its first use, so that importing stays fast."""
    if not _compiled:
        _compiled.append(numba.njit(_saturating_loop, nogil=True))
    return _compiled[0]


def _saturating_loop(a: np.ndarray, b: np.ndarray, limit: int, sums: np.ndarray) -> int:
    saturated = 0
    for batch in range(a.shape[0]):
        for row in range(a.shape[1]):
            for column in range(b.shape[1]):
                total = 0
                hit = False
                for k in range(a.shape[2]):
                    total += a[batch, row, k] * b[batch, column, k]
                    if total >= limit:
                        total = limit - 1
                        hit = True
                    elif total < -limit:
                        total = -limit
                        hit = True
                sums[batch, row, column] = total
                saturated += hit
    return saturated
