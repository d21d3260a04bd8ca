"""A percentile of the magnitudes (McKinstry et al., arXiv 1809.04191), the same at every width."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.ranges.protocol import RangeCase
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Percentile:
    """The range ends at this percentile of the magnitudes.

    Attributes:
        percentile: in (0, 100]; so many percent of all magnitudes are within the range.
        weights: whether the ranges of weights are fitted as well.

    Raises:
        InvalidOption: a percentile outside.
    """

    percentile: float = 99.9
    weights: bool = False
    facts = Facts(
        kind="–",
        granularity="tensor",
        signal="percentile",
        export="finn",
        source="arXiv 1809.04191",
    )

    def __post_init__(self) -> None:
        if not 0 < self.percentile <= 100:
            raise InvalidOption(
                f"percentile lies above 0 and not above 100, but it is {self.percentile}."
            )

    def __call__(self, case: RangeCase) -> dict[str, float]:
        shares = {}
        for name, x in case.samples.items():
            rank = max(ceil(self.percentile / 100 * len(x)), 1)
            end = float(x.abs().kthvalue(rank).values)
            # A sample of zeros alone says nothing about the range.
            shares[name] = min(end / case.widest[name], 1.0) if end > 0 else 1.0
        return shares


percentile = Percentile()
