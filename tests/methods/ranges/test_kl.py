"""The divergence, computed here bin by bin, as the slides of GTC 2017 have it."""

from __future__ import annotations

from collections import defaultdict
from math import log

import pytest
import torch

from brevitas_axe.methods.ranges.kl import Kl, kl
from tests.contracts.test_ranges import case

X = torch.randn(5000, generator=torch.Generator().manual_seed(0)).double() ** 3


def divergence(share: float, bits: int, bins: int) -> float:
    given = case(X, bits)
    widest = given.widest["x"]
    end = share * widest
    counts: dict[tuple[int, float], int] = defaultdict(int)
    mass: dict[float, int] = defaultdict(int)
    for number, level in zip(X.tolist(), given.rounded("x", share).tolist(), strict=True):
        clipped = min(max(number, -end), end)
        place = min(int((clipped / widest + 1) / 2 * bins), bins - 1)
        counts[place, level] += 1
        mass[level] += abs(number) <= end
    spread = {
        (place, level): max(mass[level], 1) / sum(other == level for _, other in counts)
        for place, level in counts
    }
    total = sum(spread.values())
    return sum(n / len(X) * log(n / len(X) / (spread[cell] / total)) for cell, n in counts.items())


@pytest.mark.parametrize("share", [1.0, 0.4, 0.15])
@pytest.mark.parametrize("bits", [3, 5])
def test_the_divergence_is_that_of_the_definition(share: float, bits: int) -> None:
    ours = Kl(bins=256).error_of(case(X, bits), "x", share)
    assert ours == pytest.approx(divergence(share, bits, 256), rel=1e-9)
    assert ours >= 0


def test_few_bits_give_up_the_tails_and_many_keep_them() -> None:
    shares = [kl(case(X, bits))["x"] for bits in (3, 4, 6, 8)]
    assert shares == sorted(shares)
    assert shares[0] < 0.5


def test_numbers_that_are_on_the_grid_lose_nothing() -> None:
    x = torch.randint(-7, 8, (4000,), generator=torch.Generator().manual_seed(0)).double()
    x[0] = -8
    given = case(x, 4)
    assert kl.error_of(given, "x", 1.0) == pytest.approx(0, abs=1e-12)
    assert kl(given)["x"] == 1.0
