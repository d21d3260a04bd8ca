from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.noisy import Noisy, noisy, published
from brevitas_axe.methods.transforms.protocol import Change, Site
from brevitas_axe.methods.transforms.rounding_error import input_step, output_error, rounded
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

CHANNELS, BITS = 4000, 4
WIDTHS = LayerPrecision(weight=8, input=BITS)
GENERATOR = torch.Generator().manual_seed(0)


def site(sample: torch.Tensor, weight: torch.Tensor) -> Site:
    low, high = sample.amin(0), sample.amax(0)
    return Site(("fc",), "norm", True, False, False, low, high, sample, (weight.unsqueeze(1),))


def squared(x: torch.Tensor, noise: torch.Tensor, step: float) -> float:
    return float((rounded(x + noise, torch.tensor(step), 8) - noise - x).square().mean())


@pytest.mark.parametrize(("n", "ratio"), [(0.25, 0.849), (0.5, 0.521), (0.667, 0.421)])
def test_a_spike_far_from_its_integer_gains_what_the_theorem_says(n: float, ratio: float) -> None:
    """All numbers .8 half-steps from the nearest integer: error (b-x)² + n²/3 - b(n-x)²/n."""
    step = 1.0
    # The largest number sets the step, the spike is what is measured; noise is n of a step.
    spike = torch.full((1, 200_000), 10.4, dtype=torch.float64)
    found = Noisy(steps=12 if n == 0.667 else 4)
    index = {0.25: 0, 0.5: 1, 0.667: 7}[n]
    drawn = list(found._candidates(site(spike, torch.ones(1, 200_000)), WIDTHS))[index]
    unit = float(input_step(spike, BITS))
    noise = drawn / unit * step
    assert float(noise.abs().max()) == pytest.approx(n, rel=1e-2)
    assert squared(spike, noise, step) / squared(spike, 0 * noise, step) == pytest.approx(
        ratio, abs=4e-3
    )


def test_uniform_numbers_gain_nothing() -> None:
    x = torch.rand(1, 200_000, dtype=torch.float64, generator=GENERATOR) * 50
    noise = (torch.rand(1, 200_000, dtype=torch.float64, generator=GENERATOR) - 0.5) / 2
    assert squared(x, noise, 1.0) / squared(x, 0 * noise, 1.0) == pytest.approx(1, abs=1e-2)


def spikes() -> Site:
    """Numbers of two kinds near the boundary of two integers, whose errors do not cancel."""
    generator = torch.Generator().manual_seed(1)
    sample = torch.where(torch.rand(300, 64, generator=generator) < 0.5, 0.45, -1.45).double()
    sample += 0.02 * torch.randn(300, 64, generator=generator)
    sample[0, 0] = 7.0
    return site(sample, torch.randn(24, 64, generator=generator).double())


@pytest.mark.parametrize("mode", ["uniform", "shift"])
def test_the_best_noise_is_taken_and_none_where_none_is_better(mode) -> None:
    found = Noisy(mode)
    planted = spikes()
    change = found.change(planted, WIDTHS)
    assert change is not None
    assert change.scale is None
    assert change.shift is not None
    assert (change.shift.std() == 0) == (mode == "shift")
    errors = [
        output_error(planted, Change(shift=-noise), WIDTHS)
        for noise in found._candidates(planted, WIDTHS)
    ]
    assert output_error(planted, change, WIDTHS) == min(errors)
    assert min(errors) < output_error(planted, Change(), WIDTHS)
    assert found.change(planted, LayerPrecision(weight=8)) is None
    exact = replace(planted, sample=torch.full_like(planted.sample, 3.0))
    assert found.change(exact, WIDTHS) is None


def test_only_what_can_be_folded_is_changed() -> None:
    planted = spikes()
    assert noisy.change(replace(planted, padded=True), WIDTHS) is None
    assert noisy.change(replace(planted, shifts=False, giver=None), WIDTHS) is None
    assert Noisy(front=True).change(replace(planted, shifts=False, giver=None), WIDTHS) is not None


def test_the_same_seed_draws_the_same_noise() -> None:
    first, again, other = (
        next(Noisy(seed=seed)._candidates(spikes(), WIDTHS)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def official(x: torch.Tensor, w: torch.Tensor, bits: int, drawn: torch.Tensor):
    """What fast_quant.py of kriskrisliu/NoisyQuant does with search_mean and search_noisy.

    Its own words are not copied; the order of its steps and its constants are.
    """
    top = 2 ** (bits - 1) - 1
    scale = w.abs().amax(1, keepdim=True) / top
    near = (w / scale).round().clamp(-top - 1, top) * scale

    def q(value, step):
        return (value / step).round().clamp(-top - 1, top) * step

    def loss(value):
        return float(F.mse_loss(F.linear(value, near), F.linear(x, near)))

    clips = [x.abs().max() / 1000 * i for i in range(1000, 0, -1)]
    step = min(clips, key=lambda c: loss(q(x.clamp(-c, c), c / top))) / top
    mean = min((step * i / 200 for i in range(-200, 200)), key=lambda t: loss(q(x + t, step) - t))
    noise = (drawn * 2 - 1) * step
    tried = [mean + noise * i / 1000 for i in range(2000)]
    return step, min(tried, key=lambda t: loss(q(x + t, step) - t))


def test_the_published_mode_takes_the_published_range_shift_and_multiple() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(40, 12, generator=generator, dtype=torch.float64) ** 3
    w = torch.randn(6, 12, generator=generator, dtype=torch.float64)
    drawn = torch.randn(12, generator=torch.Generator().manual_seed(0)).double()
    step, noise = published(x, w, 4, 4, torch.Generator().manual_seed(0))
    wanted_step, wanted_noise = official(x, w, 4, drawn)
    torch.testing.assert_close(step, wanted_step, rtol=1e-12, atol=0)
    torch.testing.assert_close(noise, wanted_noise, rtol=1e-9, atol=1e-12)
    [tried] = Noisy("published")._candidates(site(x, w), LayerPrecision(weight=4, input=4))
    torch.testing.assert_close(tried, noise)


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(InvalidOption, match="uniform, shift"):
        method("transforms", "noisy:mode=loud")
    with pytest.raises(InvalidOption, match="uniform, shift or published, not 'loud'"):
        Noisy("loud")  # type: ignore[arg-type]
    with pytest.raises(InvalidOption, match="at least 1"):
        method("transforms", "noisy:steps=0")
