"""Fixed-point types as hls4ml writes them, in exact arithmetic.

`fixed<W,I>` has integers of W bits times 2^(I-W). W counts all bits, the sign included; I may be
negative or larger than W. Without modes, a type wraps around and truncates.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

_ROUNDING = {"ROUND": "RND_CONV", "FLOOR": "TRN"}


@dataclass(frozen=True)
class Fixed:
    """One fixed-point type.

    Attributes:
        width: all bits.
        exponent: one unit is 2^exponent.
        signed: two's complement if True.
        modes: rounding and saturation, empty for truncation and wrap-around.
    """

    width: int
    exponent: int
    signed: bool = True
    modes: str = ""

    @property
    def integer(self) -> int:
        """I of fixed<W,I>."""
        return self.width + self.exponent

    def __str__(self) -> str:
        return f"{'' if self.signed else 'u'}fixed<{self.width},{self.integer}{self.modes}>"


def quantizing(width: int, exponent: int, signed: bool, narrow: bool, mode: str) -> Fixed:
    """The type of a QONNX quantizer, which rounds and saturates; narrow ones to ±(2^(W-1) - 1)."""
    modes = f",{_ROUNDING[mode]},SAT{'_SYM' if narrow else ''}"
    return Fixed(width, exponent, signed, modes)


def power_of_two(scale: np.ndarray) -> int | None:
    """The exponent of a scale that is one positive power of two, else None."""
    values = np.unique(np.asarray(scale, np.float64))
    if values.size != 1:
        return None
    mantissa, exponent = np.frexp(values[0])
    return int(exponent) - 1 if mantissa == 0.5 else None


@dataclass(frozen=True)
class Span:
    """Numbers of a tensor: integers from low to high times 2^exponent."""

    low: int
    high: int
    exponent: int

    def at(self, exponent: int) -> Span:
        """The same numbers in finer units; `exponent` is at most the present one."""
        shift = self.exponent - exponent
        return Span(self.low << shift, self.high << shift, exponent)

    def joined(self, other: Span) -> Span:
        """The smallest span that contains both."""
        fine = min(self.exponent, other.exponent)
        a, b = self.at(fine), other.at(fine)
        return Span(min(a.low, b.low), max(a.high, b.high), fine)

    def plus(self, other: Span) -> Span:
        """Sums of one number of each."""
        fine = min(self.exponent, other.exponent)
        a, b = self.at(fine), other.at(fine)
        return Span(a.low + b.low, a.high + b.high, fine)

    def minus(self, other: Span) -> Span:
        """Differences of one number of each."""
        return self.plus(Span(-other.high, -other.low, other.exponent))

    def times(self, other: Span) -> Span:
        """Products of one number of each."""
        ends = [a * b for a in (self.low, self.high) for b in (other.low, other.high)]
        return Span(min(ends), max(ends), self.exponent + other.exponent)

    @property
    def type(self) -> Fixed:
        """The narrowest type with all of these numbers."""
        signed = self.low < 0
        bits = max(max(self.high, 0).bit_length(), (-self.low - 1).bit_length() if signed else 0)
        return Fixed(max(bits + signed, 1 + signed), self.exponent, signed)


def span_of(values: np.ndarray) -> Span:
    """The span of floats, exactly: every float is an integer times a power of two."""
    numbers = [Fraction(float(value)) for value in np.unique(values)]
    exponent = -max(number.denominator.bit_length() - 1 for number in numbers)
    if exponent == 0:  # integers: the coarsest unit that all of them allow
        whole = [abs(int(number)) for number in numbers if number]
        exponent = min(((n & -n).bit_length() - 1 for n in whole), default=0)
    unit = Fraction(2) ** exponent
    units = [int(number / unit) for number in numbers]
    return Span(min(units), max(units), exponent)


def scaled(
    low: list[int], high: list[int], exponent: int, gain: np.ndarray, offset: np.ndarray
) -> Span:
    """Numbers gain × x + offset, channel by channel.

    Args:
        low: smallest integer of each channel.
        high: largest integer of each channel.
        exponent: of these integers.
        gain: float, per channel.
        offset: float, per channel.
    """
    unit = Fraction(2) ** exponent
    ends = []
    for a, b, g, c in zip(low, high, gain, offset, strict=True):
        factor, shift = Fraction(float(g)), Fraction(float(c))
        ends += [factor * a * unit + shift, factor * b * unit + shift]
    fine = min(span_of(gain).exponent + exponent, span_of(offset).exponent)
    step = Fraction(2) ** fine
    units = [int(end / step) for end in ends]
    return Span(min(units), max(units), fine)
