"""Fixed-point types and spans, held against exact arithmetic."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.export.hls4ml.fixed import Fixed, Span, power_of_two, quantizing, scaled, span_of

FLOATS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=5)


def values(kind: Fixed) -> tuple[Fraction, Fraction, Fraction]:
    """(smallest, largest, unit)."""
    unit = Fraction(2) ** kind.exponent
    low = -(2 ** (kind.width - 1)) if kind.signed else 0
    high = 2 ** (kind.width - kind.signed) - 1
    return low * unit, high * unit, unit


@given(FLOATS)
def test_the_type_of_a_span_holds_every_number_of_it_exactly(numbers: list[float]) -> None:
    kind = span_of(np.asarray(numbers)).type
    low, high, unit = values(kind)
    for number in map(Fraction, numbers):
        assert low <= number <= high
        assert (number / unit).denominator == 1


@given(st.integers(-1000, 1000), st.integers(0, 1000), st.integers(-8, 8))
def test_the_type_of_a_span_is_the_narrowest(low: int, more: int, exponent: int) -> None:
    kind = Span(low, low + more, exponent).type
    smaller = Fixed(kind.width - 1, exponent, kind.signed)
    least, most, unit = values(smaller)
    holds = least <= low * unit and (low + more) * unit <= most
    assert kind.width == 1 + kind.signed or not holds


@given(st.integers(-50, 0), st.integers(0, 50), st.integers(-4, 4), FLOATS)
def test_a_gain_and_an_offset_are_exact(low: int, high: int, exponent: int, gains: list[float]):
    gain, count = np.asarray(gains, np.float32), len(gains)
    offset = np.flip(gain)
    span = scaled([low] * count, [high] * count, exponent, gain, offset)
    for factor, shift in zip(map(float, gain), map(float, offset), strict=True):
        for end in (low, high):
            number = Fraction(factor) * end * Fraction(2) ** exponent + Fraction(shift)
            units = number / Fraction(2) ** span.exponent
            assert units.denominator == 1
            assert span.low <= units <= span.high


def test_sums_and_unions_use_the_finer_unit() -> None:
    coarse, fine = Span(-1, 3, 0), Span(0, 5, -2)
    assert coarse.plus(fine) == Span(-4, 17, -2)
    assert coarse.minus(fine) == Span(-9, 12, -2)
    assert coarse.times(fine) == Span(-5, 15, -2)
    assert coarse.joined(fine) == Span(-4, 12, -2)


@pytest.mark.parametrize(
    ("scale", "exponent"), [(0.25, -2), (8.0, 3), (0.3, None), (-2.0, None), ([1.0, 2.0], None)]
)
def test_power_of_two(scale: float, exponent: int | None) -> None:
    assert power_of_two(np.asarray(scale)) == exponent


def test_types_are_written_as_hls4ml_reads_them() -> None:
    assert str(Fixed(10, -9)) == "fixed<10,1>"
    assert str(Fixed(4, -6, signed=False)) == "ufixed<4,-2>"
    assert str(quantizing(8, -5, True, False, "ROUND")) == "fixed<8,3,RND_CONV,SAT>"
    assert str(quantizing(8, -5, True, True, "FLOOR")) == "fixed<8,3,TRN,SAT_SYM>"
