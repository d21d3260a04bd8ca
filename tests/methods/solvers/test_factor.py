"""A triangular factor exists for every finite second moment."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.errors import NonFiniteValues
from brevitas_axe.methods.solvers.factor import damped_factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regular(dtype: torch.dtype) -> None:
    inputs = torch.randn(2, 8, 20, dtype=dtype)
    moments = inputs @ inputs.mT
    factor, used = damped_factor(moments, torch.full((2,), 0.5, dtype=dtype))
    torch.testing.assert_close(
        factor.mT @ factor, moments + 0.5 * torch.eye(8, dtype=dtype), rtol=1e-4, atol=1e-4
    )
    assert used.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_singular(dtype: torch.dtype) -> None:
    vector = torch.linspace(1, 2, 300, dtype=dtype)
    moments = (1e6 * torch.outer(vector, vector))[None]
    factor, used = damped_factor(moments, torch.zeros(1, dtype=dtype))
    assert factor.isfinite().all()
    assert 0 < used.item() < 1e-3 * moments.diagonal(dim1=-2, dim2=-1).mean()


def test_all_dead() -> None:
    factor, _ = damped_factor(torch.zeros(1, 4, 4), torch.zeros(1))
    assert factor.isfinite().all()


def test_slightly_negative() -> None:
    # What centring may leave of an input that is constant.
    factor, used = damped_factor(torch.full((1, 1, 1), -1e-7), torch.zeros(1))
    assert factor.isfinite().all()
    assert used > 1e-7


def test_not_finite() -> None:
    with pytest.raises(NonFiniteValues):
        damped_factor(torch.full((1, 4, 4), float("nan")), torch.zeros(1))
