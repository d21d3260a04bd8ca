"""The range with the least squared error.

With few bits the best range is narrower than with many: the error of clipping is less than what
the finer step saves.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from brevitas_axe.methods.ranges.protocol import SearchedRange
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

    def error(self, x: Tensor, rounded: Tensor, largest: float, widest: float) -> float:
        return float((rounded - x).square().mean())


mse = Mse()
