"""Percentiles by extremes are Brevitas's, and the CPU is left as it is."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from brevitas.core.stats import AbsPercentile, NegativePercentileOrZero
from torch import nn

from brevitas_axe.model.percentiles import ByExtremes, quick_percentiles


class Calls(torch.overrides.TorchFunctionMode):
    """Counts calls of one function."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.function, self.count = function, 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.count += func is self.function
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("share", [0.1, 1.0, 50.0, 99.0, 99.999, 100.0])
@pytest.mark.parametrize("of", [AbsPercentile, NegativePercentileOrZero])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_numbers(share: float, of: type, dtype: torch.dtype) -> None:
    x = torch.randn(40, 50, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = of(share, None)(x)
    with ByExtremes():
        assert torch.equal(of(share, None)(x), expected)


def test_long_vectors_are_not_searched_by_rank() -> None:
    x = torch.arange(1000.0)
    with Calls(torch.kthvalue) as by_rank, ByExtremes():
        assert AbsPercentile(99.0, None)(x) == 989
        assert by_rank.count == 0
        assert AbsPercentile(50.0, None)(x) == 499
        assert by_rank.count == 1


def test_other_functions_are_left_alone() -> None:
    norm, x = nn.LayerNorm(8), torch.rand(3, 8)
    with ByExtremes():
        assert torch.equal(norm(x), nn.functional.layer_norm(x, (8,), norm.weight, norm.bias))


def test_only_elsewhere_than_on_the_cpu() -> None:
    assert isinstance(quick_percentiles(nn.Linear(2, 2)), nullcontext)
    assert isinstance(quick_percentiles(nn.Linear(2, 2, device="meta")), ByExtremes)
