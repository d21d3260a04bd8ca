"""Samples of many numbers."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.model.sampling import sampled

MANY = 2**14


@pytest.mark.parametrize("channels", [2, 24, 32, 96])
def test_a_sample_has_numbers_of_every_channel(channels: int) -> None:
    x = torch.arange(channels).float().expand(8 * MANY // channels, channels)
    found = sampled(x.flatten(), 8)
    counts = torch.bincount(found.long(), minlength=channels) * channels / len(found)
    assert float((counts - 1).abs().max()) < 0.4
    assert torch.equal(found, sampled(x.flatten(), 8))


def test_a_sample_of_rows_has_every_position_of_a_sequence() -> None:
    positions = torch.arange(64).float().repeat(64)
    rows = torch.stack([positions, -positions], 1)
    found = sampled(rows, 8)
    assert found.shape == (512, 2)
    assert torch.equal(found[:, 0], -found[:, 1])
    assert len(found[:, 0].unique()) > 56


@pytest.mark.parametrize("count", [0, 1, 100, 101])
@pytest.mark.parametrize("stretch", [0, 1, 2, 100])
def test_one_of_each_stretch_in_their_order(count: int, stretch: int) -> None:
    x = torch.arange(count).float()
    found = sampled(x, stretch)
    assert len(found) == count // max(stretch, 1)
    assert bool((found.diff() > 0).all())
    if stretch < 2:
        assert torch.equal(found, x)
    if stretch < 2 and count:
        assert found.data_ptr() != x.data_ptr()
