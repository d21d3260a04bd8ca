"""Ties, where FINN may round differently from torch: halfway between two levels.

FINN compares integers with thresholds, so it rounds half up; torch computes in float32 and rounds
half to even. They differ where `scale × integer + offset` can be exactly (k + ½) × output scale for
an even k, which is the rule with powers of two, unless a bias or a batch norm moves the sums off
the grid. With other scales both have rounding errors, FINN in its thresholds and torch in its
sums, and a value within these errors of the halfway point may be rounded either way, for any k. So
systematic ties need only a simple ratio of the scales, such as 62 / 15 where the largest integers
of two quantizers stand for the same number, and no offset. Unrelated scales and biases may give a
tie by chance, in one sum of one channel; it is moved with the others, but is no finding.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from brevitas_axe.export.finn.signal import Signal, Ties

# Bound of the rounding errors of torch's sums and FINN's thresholds, relative to `Signal.size`.
# Measured: less than 7.5 × 2^-24 for dot products of 9 to 4608 terms, 2 to 8 bits (float64 here has
# errors of 2^-50).
_NOISE = 2.0**-21
# A shift of this many times that bound leaves more than the bound between sums and thresholds.
_CLEAR = 2
# Scales have a simple ratio if its denominator is at most this: two ranges of up to 8 bits.
_LARGEST_DENOMINATOR = 255
_BLOCK = 2**20  # channels × levels that are looked at together


def is_power_of_two(scale: np.ndarray) -> np.ndarray:
    """Where a scale is a power of two of either sign, so that products with it are exact."""
    return np.frexp(np.abs(scale))[0] == 0.5


def find_ties(signal: Signal, scale: float, low: int, high: int) -> Ties | None:
    """Halfway points of a quantizer in the range of its input that FINN may round differently.

    Args:
        signal: the quantizer's input.
        scale: the quantizer's scale.
        low: its smallest integer.
        high: its largest integer.
    """
    levels = np.arange(low, high, dtype=np.float64)
    exact = is_power_of_two(signal.scale) & bool(is_power_of_two(np.asarray(scale)))
    simple = _is_simple(signal.scale / scale)
    return _ties(signal, (levels + 0.5) * scale, exact, simple, levels % 2 == 0)


@np.vectorize(otypes=[bool])
def _is_simple(ratio: float) -> bool:
    """Whether a ratio is that of two small integers, up to float32's rounding of both scales."""
    nearest = Fraction(float(ratio)).limit_denominator(_LARGEST_DENOMINATOR)
    return bool(abs(nearest - Fraction(float(ratio))) <= 2.0**-22 * abs(ratio))


def find_sign_ties(signal: Signal) -> Ties | None:
    """Ties around zero of a quantizer to -1 and 1; FINN and torch both map an exact zero to 1."""
    exact = is_power_of_two(signal.scale)
    return _ties(signal, np.zeros(1), exact, np.ones_like(exact), np.zeros(1, bool))


def _ties(
    signal: Signal, points: np.ndarray, exact: np.ndarray, simple: np.ndarray, down: np.ndarray
) -> Ties | None:
    """Ties at some values.

    Args:
        signal: what is compared with them.
        points: [levels], where each level begins.
        exact: where an exact tie has no rounding errors, broadcastable to the tensor.
        simple: where, without an offset, a tie is no coincidence; alike.
        down: [levels], whether torch rounds an exact tie down.
    """
    blocks = [_block(signal, *part) for part in _split(signal, points, exact, simple, down)]
    if not blocks:
        return None
    count, systematic, tied, halves, rise, fall, noise = zip(*blocks, strict=True)
    if not sum(count):
        return None
    least, most = np.minimum.reduce(rise), np.minimum.reduce(fall)
    up = np.logical_or.reduce(halves) | (least >= most)
    room = np.where(up, least, most) / 2
    clear = room > _CLEAR * np.maximum.reduce(noise)
    shift = np.where(clear, np.where(up, room, -room) * np.sign(signal.scale), np.nan)
    return Ties(sum(count), sum(systematic), np.where(np.logical_or.reduce(tied), shift, 0.0))


def _split(
    signal: Signal, points: np.ndarray, exact: np.ndarray, simple: np.ndarray, down: np.ndarray
) -> Iterator[tuple[np.ndarray, ...]]:
    """The levels in parts that do not take much memory with all channels."""
    parts = max(1, -(-signal.elements * len(points) // _BLOCK))
    for some, falling in zip(
        np.array_split(points, parts), np.array_split(down, parts), strict=True
    ):
        if len(some):
            yield some, exact, simple, falling


def _block(
    signal: Signal, points: np.ndarray, exact: np.ndarray, simple: np.ndarray, down: np.ndarray
) -> tuple:
    """Of some levels: how many ties, how many systematic ones, and four things by channel.

    These are: any tie, any exact one, how far values may rise or fall before one crosses a level
    that it is not close to, and the noise.
    """
    scale, offset, size = (v[..., None] for v in (signal.scale, signal.offset, signal.size))
    low, high, step = (v[..., None] for v in (signal.low, signal.high, signal.step))
    # [..., levels]: the (fractional) integer at which each level begins.
    starts = (points - offset) / scale
    nearest = low + np.rint((starts - low) / step) * step
    distance = np.sign(scale) * (starts - nearest)
    noise = _NOISE * (np.abs(points) + size) / np.abs(scale)
    close = np.abs(distance) <= noise
    halves = exact[..., None] & (distance == 0)
    ties = close & (nearest >= low) & (nearest <= high) & (down | ~halves)
    systematic = ties & (halves | (simple[..., None] & (offset == 0)))
    rise = np.where(close, step, np.mod(distance, step)).min(axis=-1)
    fall = np.where(close, step, np.mod(-distance, step)).min(axis=-1)
    tied, exactly = ties.any(axis=-1), halves.any(axis=-1)
    return int(ties.sum()), int(systematic.sum()), tied, exactly, rise, fall, noise.max(axis=-1)
