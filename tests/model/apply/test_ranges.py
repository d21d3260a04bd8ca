"""Samples of what quantizers quantize."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.model.apply.ranges import SAMPLE, sampled


@pytest.mark.parametrize("channels", [2, 24, 32, 96])
def test_a_sample_has_numbers_of_every_channel(channels: int) -> None:
    x = torch.arange(channels).float().expand(8 * SAMPLE // channels, channels)
    found = sampled(x.flatten())
    counts = torch.bincount(found.long(), minlength=channels) * channels / len(found)
    assert float((counts - 1).abs().max()) < 0.4
    assert torch.equal(found, sampled(x.flatten()))


@pytest.mark.parametrize("count", [1, 100, SAMPLE, 2 * SAMPLE - 1, 2 * SAMPLE, 5 * SAMPLE + 3])
def test_few_numbers_are_all_taken_and_many_in_their_order(count: int) -> None:
    x = torch.arange(count).float()
    found = sampled(x)
    assert len(found) >= min(count, SAMPLE)
    assert bool((found.diff() > 0).all())
    if count < 2 * SAMPLE:
        assert torch.equal(found, x)
        assert found.data_ptr() != x.data_ptr()
