"""Ties are found where float32 decides otherwise than thresholds on integers, and moved away."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.export.finn.signal import Signal
from brevitas_axe.export.finn.ties import Ties, find_sign_ties, find_ties

LEVELS = (0, 15)


def signal(scale: float, low: int, high: int, offset: float = 0.0, step: int = 1) -> Signal:
    size = abs(offset) + abs(scale) * max(-low, high)
    first, last, apart = (np.asarray(value, np.int64) for value in (low, high, step))
    return Signal(np.asarray(scale), np.asarray(offset), first, last, apart, np.asarray(size))


def single(value: float) -> float:
    return float(np.float32(value))


def shift(ties: Ties | None) -> float:
    assert ties is not None
    return float(ties.shift)


def levels(s: Signal, scale: float) -> list[int]:
    """The level of every integer, halves up, computed exactly."""
    low, high = LEVELS
    exact = [Fraction(float(v)) for v in (s.scale, s.offset)]
    integers = range(int(s.low), int(s.high) + 1, int(s.step))
    values = [(exact[0] * n + exact[1]) / Fraction(scale) for n in integers]
    return [min(max(floor(value + Fraction(1, 2)), low), high) for value in values]


def moved(s: Signal, ties: Ties) -> Signal:
    return replace(s, offset=s.offset + ties.shift * s.scale)


@pytest.mark.parametrize("sign", [1, -1])
def test_of_powers_of_two_every_other_tie_is_rounded_otherwise(sign):
    ties = find_ties(signal(sign * 0.25, -100, 100), 0.5, *LEVELS)
    assert ties is not None
    assert ties.count == ties.systematic == 8  # torch, too, rounds 1.5, 3.5, … up
    assert shift(ties) == sign * 0.5


def test_exact_ties_go_up_though_there_is_more_room_below():
    """Levels begin at 0 and at 1/4: FINN rounds the first one up, and so it stays."""
    assert shift(find_ties(signal(1.0, -8, 8, 0.125), 0.25, 0, 2)) == 0.125


@pytest.mark.parametrize("step", [0.1, 0.37, 1 / 3, 3.0])
def test_saturated_quantizers_meet_in_one_value(step):
    """With 62 / 15 of the finer step, 7.5 coarse steps are 31 fine ones."""
    fine, coarse = single(step), single(step * 62 / 15)
    ties = find_ties(signal(fine, -64, 62), coarse, *LEVELS)
    assert ties is not None
    assert ties.count == ties.systematic == 1
    # The other levels begin at multiples of 1/15: half of that is the largest safe distance.
    assert abs(shift(ties)) == pytest.approx(1 / 30, rel=1e-4)
    assert find_ties(moved(signal(fine, -64, 62), ties), coarse, *LEVELS) is None


def test_values_out_of_reach_are_no_ties():
    fine, coarse = single(0.1), single(0.1 * 62 / 15)
    assert find_ties(signal(fine, -64, 30), coarse, *LEVELS) is None
    assert find_ties(signal(fine, -64, 62, step=2), coarse, *LEVELS) is None
    assert find_ties(signal(fine, -64, 62, offset=fine / 2), coarse, *LEVELS) is None
    # Near, but farther than what float32 loses of such values.
    assert find_ties(signal(fine, -64, 62), coarse * (1 + 1e-5), *LEVELS) is None


def test_a_bias_may_bring_a_tie_by_chance():
    scale, coarse = single(0.0123), single(0.1)
    bias = single(4.5 * coarse - 17 * scale)
    ties = find_ties(signal(scale, -50, 50, bias), coarse, *LEVELS)
    assert ties is not None
    assert (ties.count, ties.systematic) == (1, 0)


def test_without_room_nothing_moves():
    """Levels begin just before and just behind an integer: no shift keeps both."""
    ties = find_ties(signal(1.0, -100, 100, 0.50015), single(1.0001), 0, 3)
    assert ties is not None
    assert ties.count == 1
    assert np.isnan(shift(ties))


def test_signs_change_at_zero():
    assert find_sign_ties(signal(0.25, -9, 9)) is None  # exact: both take zero as 1
    assert find_sign_ties(signal(0.3, -9, 9, step=2)) is None  # odd integers only
    ties = find_sign_ties(signal(0.3, -9, 9))
    assert abs(shift(ties)) == 0.5


@given(
    st.floats(2**-7, 8, width=32),
    st.integers(1, 120),
    st.integers(1, 40),
    st.integers(-30, 30),
    st.sampled_from([-1, 1]),
)
def test_float32_and_thresholds_agree_wherever_no_tie_is_found(step, over, under, bias, sign):
    """Two ways to compute one quantizer, scales in simple ratios as in saturated nets."""
    fine = np.float32(sign * step)
    coarse, offset = np.float32(step * over / under), np.float32(bias * step / under)
    n = np.arange(-64, 65).astype(np.float32)
    low, high = LEVELS
    torch = np.clip(np.rint((fine * n + offset) / coarse), low, high)
    bounds = ((np.arange(low, high).astype(np.float32) + np.float32(0.5)) * coarse - offset) / fine
    finn = low + (np.sign(fine) * n >= np.ceil(np.sign(fine) * bounds)[:, None]).sum(axis=0)
    met = signal(float(fine), -64, 64, float(offset))
    if not np.array_equal(torch, finn):
        assert find_ties(met, float(coarse), *LEVELS) is not None


@given(
    st.floats(2**-7, 8, width=32),
    st.integers(1, 120),
    st.integers(1, 40),
    st.sampled_from([-1, 1]),
    st.integers(1, 3),
)
def test_a_shift_moves_ties_and_nothing_else(step, over, under, sign, multiple):
    fine, coarse = single(sign * step), single(step * over / under)
    s = signal(fine, -60, 60, step=multiple)
    ties = find_ties(s, coarse, *LEVELS)
    if ties is None or np.isnan(ties.shift):
        return
    after = moved(s, ties)
    assert find_ties(after, coarse, *LEVELS) is None
    before, found = levels(s, coarse), levels(after, coarse)
    assert sum(a != b for a, b in zip(before, found, strict=True)) <= ties.count
    assert all(abs(a - b) <= 1 for a, b in zip(before, found, strict=True))
