"""Some of many numbers, for what is estimated from a sample."""

from __future__ import annotations

import torch
from torch import Tensor


def sampled(x: Tensor, stretch: int) -> Tensor:
    """One row from each stretch of so many, at random but the same every time.

    Every so many-th row would always be of the same few channels, or of the same few positions of
    a sequence.

    Args:
        x: [n, ...].
        stretch: rows of which one is taken; with fewer than two, a copy has them all. A last
            stretch that is shorter is left out.
    """
    if stretch < 2:
        return x.clone()
    starts = torch.arange(len(x) // stretch) * stretch
    within = torch.randint(stretch, starts.shape, generator=torch.Generator().manual_seed(0))
    return x[(starts + within).to(x.device)]
