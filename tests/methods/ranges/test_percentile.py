from __future__ import annotations

import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import method
from tests.contracts.test_ranges import case


@pytest.mark.parametrize(("percent", "share"), [(100, 1.0), (99, 0.99), (50, 0.5), (0.1, 0.01)])
def test_so_many_percent_of_the_magnitudes_are_inside(percent: float, share: float) -> None:
    x = torch.arange(1, 101) / 100 * (-1) ** torch.arange(100)
    found = method("ranges", f"percentile:percentile={percent}")(case(x, 4))
    assert found["x"] == pytest.approx(share)


def test_a_percentile_outside_is_named() -> None:
    for percent in (0, 100.1):
        with pytest.raises(InvalidOption, match="not above 100"):
            method("ranges", f"percentile:percentile={percent}")
