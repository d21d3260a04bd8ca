"""The range whose rounded numbers are distributed most like the numbers themselves.

S. Migacz, 8-bit inference with TensorRT, GTC 2017: of a fine histogram P, everything beyond the
range is added to the last bin; Q is what is left of P when each level of the grid spreads its
numbers evenly over its bins that are not empty. The Kullback-Leibler divergence of P from Q says
how much a range loses.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brevitas_axe.methods.ranges.protocol import SearchedRange
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Kl(SearchedRange):
    """Kullback-Leibler divergence of two histograms.

    Attributes:
        bins: of the fine histogram, from the negative to the positive end of the calibrated range.
    """

    bins: int = 4096
    facts = Facts(
        kind="–",
        granularity="tensor",
        signal="divergence of histograms",
        export="finn",
        source="Migacz, GTC 2017",
    )

    def error(self, x: Tensor, rounded: Tensor, largest: float, widest: float) -> float:
        if widest <= 0:
            return 0.0
        inside = x.abs() <= largest
        clipped = x.double().clamp(-largest, largest)
        fine = ((clipped / widest + 1) / 2 * self.bins).long().clamp(0, self.bins - 1)
        levels, level = rounded.unique(return_inverse=True)
        # A cell is the part of a fine bin that one level of the grid takes.
        cells, cell = (fine * len(levels) + level).unique(return_inverse=True)
        count = torch.bincount(cell, minlength=len(cells)).double()
        kept = torch.bincount(cell, inside.double(), minlength=len(cells))
        level_of = cells % len(levels)
        mass = torch.bincount(level_of, kept, minlength=len(levels))
        parts = torch.bincount(level_of, minlength=len(levels))
        # A level with nothing but clipped numbers counts as one number, so that Q is nowhere zero.
        spread = (mass.clamp(min=1) / parts.clamp(min=1))[level_of]
        p, q = count / count.sum(), spread / spread.sum()
        return float((p * (p / q).log()).sum())


kl = Kl()
