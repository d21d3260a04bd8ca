from __future__ import annotations

import torch

from brevitas_axe.methods.ranges.max import max
from tests.contracts.test_ranges import case


def test_the_whole_range_stays_at_every_width() -> None:
    x = torch.randn(100, generator=torch.Generator().manual_seed(0)) ** 5
    assert [max(case(x, bits)) for bits in (2, 8)] == [{"x": 1.0}] * 2
