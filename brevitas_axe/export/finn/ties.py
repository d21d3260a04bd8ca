"""Where FINN's rounding differs from torch's: exactly halfway between two levels.

FINN compares integers with thresholds, so it rounds half up; torch rounds half to even. They
differ where `scale × integer + offset` can be exactly (k + ½) × output scale for an even k. With
scales that are learned that has no probability; with powers of two it is the rule, unless a bias
or a batch norm moves the sums off the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from brevitas_axe.export.finn.signal import Signal

# Rounding errors of float64 (general scales) and of float32, in which torch decides a tie, where
# every product is exact because the scales' ratio is a power of two.
_EXACT, _SINGLE = 2.0**-45, 2.0**-23
# A smaller distance to the next threshold than this part of a step is no safe place.
_MARGIN = 2.0**-8


@dataclass(frozen=True)
class Ties:
    """Halfway points that sums can reach.

    Attributes:
        count: how many, over all channels.
        shift: float64, what to add to the integers so that torch, too, rounds these half up and
            nothing else changes; broadcastable to the tensor, NaN where there is no room.
    """

    count: int
    shift: np.ndarray


def find_ties(signal: Signal, scale: float, low: int, high: int) -> Ties | None:
    """Halfway points of a quantizer that its input can reach and that FINN rounds otherwise.

    Args:
        signal: the quantizer's input.
        scale: the quantizer's scale.
        low: its smallest integer.
        high: its largest integer.
    """
    levels = np.arange(low, high, dtype=np.float64)
    points = (levels + 0.5) * scale
    # [..., levels]: the (fractional) integer at which each level begins.
    steps = (points - signal.offset[..., None]) / signal.scale[..., None]
    nearest = np.rint(steps)
    dyadic = np.frexp(np.abs(signal.scale / scale))[0] == 0.5
    tolerance = np.where(dyadic, _SINGLE, _EXACT)[..., None] * np.maximum(np.abs(steps), 1)
    halfway = np.abs(steps - nearest) <= tolerance
    lowest, highest, step = (v[..., None] for v in (signal.low, signal.high, signal.step))
    reachable = (nearest >= lowest) & (nearest <= highest) & (nearest % step == 0)
    ties = halfway & reachable & (levels % 2 == 0)
    if not ties.any():
        return None
    sign = np.sign(signal.scale)
    # How far each other level may move before it takes another integer with it.
    room = np.where(halfway, 1.0, np.mod(sign[..., None] * steps, 1.0)).min(axis=-1)
    shift = np.where(ties.any(axis=-1), sign * room / 2, 0.0)
    return Ties(int(ties.sum()), np.where(room < _MARGIN, np.nan, shift))
