"""Small floating-point formats as integers on their finest grid.

Every finite number of such a format is a whole multiple of its smallest one. So sums of products
of two formats are integers too, and what `accumulator` says of integers holds for a fixed-point
accumulator that rounds nothing (Kulisch, 1971). Formats are those of the OCP specifications for
8-bit floating point and for microscaling (MX), named by the bits of exponent and mantissa beside
the sign.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from brevitas_axe.accumulator import InputRange, datatype_bound, required_bit_width
from brevitas_axe.errors import InvalidOption, InvalidPlan

# What a number is stored in: an integer of so many bits, or a name of `MINIFLOATS`.
Format = int | str


@dataclass(frozen=True)
class Minifloat:
    """A signed floating-point format with subnormal numbers.

    Attributes:
        exponent: bits of it.
        mantissa: bits of it, without the leading one.
        reserved: how many of the largest bit patterns are no numbers, but infinite or NaN.

    Raises:
        InvalidOption: no exponent, or a negative number of bits or patterns.
    """

    exponent: int
    mantissa: int
    reserved: int = 0

    def __post_init__(self) -> None:
        if self.exponent < 1 or self.mantissa < 0 or self.reserved < 0:
            raise InvalidOption(
                "a floating-point format needs an exponent of 1 bit or more, and a mantissa and "
                f"reserved patterns of 0 or more, not {self}."
            )

    @property
    def bits(self) -> int:
        """Bits that are stored, with the sign: what costs count."""
        return 1 + self.exponent + self.mantissa

    @property
    def significant(self) -> int:
        """Bits that a number begins with; as an integer, all behind them are zero."""
        return self.mantissa + 1

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def step(self) -> Fraction:
        """The smallest number above zero, of which all others are multiples."""
        return Fraction(2) ** (1 - self.bias - self.mantissa)

    @cached_property
    def integers(self) -> tuple[int, ...]:
        """All finite numbers over `step`, ascending, both signs, zero once."""
        patterns = range(2 ** (self.exponent + self.mantissa) - self.reserved)
        positive = [self._multiple(pattern) for pattern in patterns]
        return tuple(sorted({*positive, *(-number for number in positive)}))

    def _multiple(self, pattern: int) -> int:
        """The number of a bit pattern without sign, over `step`."""
        exponent, mantissa = divmod(pattern, 2**self.mantissa)
        if exponent == 0:
            return mantissa
        return (2**self.mantissa + mantissa) << (exponent - 1)

    @property
    def input_range(self) -> InputRange:
        """The integers between which all numbers lie."""
        return InputRange(self.integers[0], self.integers[-1])

    def accumulator_bits(self, other: Minifloat, terms: int) -> int:
        """Bits that hold the exact sum of so many products with numbers of another format.

        The least significant bit stands for the product of both `step`s.

        Raises:
            InvalidOption: no terms.
        """
        if terms < 1:
            raise InvalidOption(f"a dot product has at least one term, not {terms}.")
        largest = terms * self.integers[-1] * other.integers[-1]
        return required_bit_width(-largest, largest)


MINIFLOATS: Mapping[str, Minifloat] = {
    "e2m1": Minifloat(2, 1),
    "e2m3": Minifloat(2, 3),
    "e3m2": Minifloat(3, 2),
    "e4m3": Minifloat(4, 3, reserved=1),
    "e5m2": Minifloat(5, 2, reserved=4),
}


def minifloat(name: str) -> Minifloat:
    """The floating-point format of a name.

    Raises:
        InvalidPlan: there is none.
    """
    if name not in MINIFLOATS:
        raise InvalidPlan(
            f"the format '{name}' does not exist; there are bits of integers, such as 4, and the "
            f"floating-point formats {', '.join(MINIFLOATS)}."
        )
    return MINIFLOATS[name]


def is_format(numbers: InputRange | None, format: Format) -> bool:
    """Whether these are the integers of inputs of a format; None stands for none."""
    if numbers is None:
        return False
    if isinstance(format, str):
        return numbers == minifloat(format).input_range
    return numbers.bit_width == format


def bits_of(format: Format) -> int:
    """Bits that a number of a format is stored in.

    Raises:
        InvalidPlan: no such format.
    """
    return minifloat(format).bits if isinstance(format, str) else format


def accumulator_bits(terms: int, weight: Format, input: Format, signed: bool) -> int:
    """Bits that hold every exact sum of so many products, whatever the weights are.

    Floating-point numbers count as integers on their finest grid (see `Minifloat`).

    Args:
        terms: products that are added up.
        weight, input: formats.
        signed: whether integer inputs are; floating-point ones always are.
    """
    if not isinstance(weight, str) and not isinstance(input, str):
        return datatype_bound(terms, input, weight, signed)
    by = 2 ** (weight - 1) if isinstance(weight, int) else minifloat(weight).integers[-1]
    of = 2 ** (input - signed) if isinstance(input, int) else minifloat(input).integers[-1]
    return required_bit_width(-terms * by * of, terms * by * of)
