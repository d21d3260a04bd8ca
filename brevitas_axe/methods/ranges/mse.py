"""The range with the least squared error.

With few bits the best range is narrower than with many: the error of clipping is less than what
the finer step saves.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from brevitas_axe.methods.ranges.protocol import RangeCase, SearchedRange
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Mse(SearchedRange):
    """Mean squared difference of the numbers and what they are rounded to (Max 1960)."""

    facts = Facts(
        kind="–",
        granularity="tensor",
        signal="squared error",
        export="finn",
        source="IRE Trans. Inf. Theory 6 (1960) 7–12",
    )

    def candidates(self, case: RangeCase, name: str) -> tuple[float, ...]:
        """Also wider ranges, until they hold every number, up to the inverse of the least share.

        Calibration takes the mean of what it sees, batch by batch, and call by call where calls
        share a quantizer: with many bits the largest numbers are worth a wider grid than that.
        """
        widest = case.widest[name]
        largest = float(case.samples[name].abs().max()) if widest > 0 else 0.0
        steps = pairwise(self.shares)
        return (*self.shares, *(1 / share for last, share in steps if widest / last < largest))

    def error(self, x: Tensor, rounded: Tensor, largest: float, widest: float) -> float:
        return float((rounded - x).square().mean())


mse = Mse()
