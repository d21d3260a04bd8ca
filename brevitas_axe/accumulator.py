"""Exact integer facts about accumulators: ranges, worst-case sums, budgets and bit widths.

Rules of this file: integers only (int64, and Python integers where 2^62 could be passed), no
torch, nothing of ours but the error classes. The accumulator is signed and its range symmetric,
±(2^(P-1) - 1), because FINN flips the sign of columns whose batch-norm gain is negative.

Sources: A2Q (arXiv 2308.13504), A2Q+ (arXiv 2401.10432), AXE (arXiv 2409.17092).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from numbers import Real

import numpy as np
import numpy.typing as npt

from brevitas_axe.errors import (
    AccumulatorTooNarrow,
    InvalidOption,
    InvalidTile,
    MissingInputQuantizer,
)

MAX_BIT_WIDTH = 64
_INT64_SAFE = 2**62
# Weights that are added up at a time.
_CHUNK = 2**17

Integers = npt.ArrayLike


@dataclass(frozen=True)
class InputRange:
    """The integers that one input of a dot product can take, zero included.

    The range includes zero because padding inserts zeros.

    Attributes:
        low: smallest integer, ≤ 0.
        high: largest integer, ≥ 0.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not self.low <= 0 <= self.high:
            raise InvalidOption(
                f"an input range must contain 0, but [{self.low}, {self.high}] does not; "
                "choose a zero point inside the quantizer's range."
            )

    @property
    def bit_width(self) -> int:
        """Fewest bits that represent all integers of the range."""
        return (self.high - self.low).bit_length()

    @classmethod
    def from_bits(
        cls, bit_width: int, signed: bool, narrow: bool = False, zero_point: int = 0
    ) -> InputRange:
        """Range of a quantizer's integers minus its zero point.

        Args:
            bit_width: bits of the quantizer, ≥ 1.
            signed: two's complement if True.
            narrow: True drops the most negative (signed) or largest (unsigned) integer, as
                Brevitas and QONNX do. Only pass it where the tool that reads the file respects it;
                FINN does not.
            zero_point: integer that stands for the real number 0.
        """
        if bit_width < 1:
            raise InvalidOption(f"an input bit width must be at least 1, but it is {bit_width}.")
        low = -(2 ** (bit_width - 1)) + narrow if signed else 0
        high = 2 ** (bit_width - 1) - 1 if signed else 2**bit_width - 1 - narrow
        return cls(min(low - zero_point, 0), max(high - zero_point, 0))

    def union(self, other: InputRange) -> InputRange:
        """Smallest range that contains both."""
        return InputRange(min(self.low, other.low), max(self.high, other.high))


def check_bit_width(accumulator_bit_width: int) -> int:
    """Returns the width as a Python integer, or raises AccumulatorTooNarrow outside [2, 64]."""
    integral = isinstance(accumulator_bit_width, Real) and not isinstance(
        accumulator_bit_width, bool
    )
    if not integral or accumulator_bit_width % 1 != 0:
        raise AccumulatorTooNarrow(
            f"an accumulator bit width is an integer, but {accumulator_bit_width!r} was given."
        )
    if not 2 <= accumulator_bit_width <= MAX_BIT_WIDTH:
        raise AccumulatorTooNarrow(
            f"an accumulator bit width lies between 2 and {MAX_BIT_WIDTH}, but "
            f"{accumulator_bit_width} was given."
        )
    return int(accumulator_bit_width)


def accumulator_limit(accumulator_bit_width: int) -> int:
    """Largest magnitude in a symmetric signed accumulator: 2^(P-1) - 1."""
    return 2 ** (check_bit_width(accumulator_bit_width) - 1) - 1


def tile_starts(inputs: int, tile_size: int | None) -> list[int]:
    """First input of every tile; the last tile may be short.

    Args:
        inputs: length K of the dot product.
        tile_size: inputs per tile T; None or T ≥ K means one tile.

    Raises:
        InvalidTile: T < 1.
    """
    if tile_size is None:
        return [0]
    if isinstance(tile_size, bool) or int(tile_size) != tile_size or tile_size < 1:
        raise InvalidTile(f"a tile has at least one input, but tile_size is {tile_size!r}.")
    return list(range(0, max(inputs, 1), int(tile_size)))


def worst_case_sums(
    weights: Integers, low: Integers, high: Integers, tile_size: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value that any partial sum can take, whatever the order.

    min = Σ min(q·low, q·high) and max = Σ max(q·low, q·high) over each tile (AXE, Eq. 7-8).

    Args:
        weights: integers [rows, K].
        low: smallest input integers, scalar or [K], ≤ 0.
        high: largest input integers, scalar or [K], ≥ 0.
        tile_size: inputs per tile, None for whole rows.

    Returns:
        (minimum, maximum), each [rows, tiles]: int64, or Python integers (dtype object) where
        they may exceed int64.
    """
    q = np.atleast_2d(_as_integers(weights, "weights", keep=True))
    low, high = _as_integers(low, "low"), _as_integers(high, "high")
    if np.any(low > 0) or np.any(high < 0):
        raise InvalidOption("input ranges must contain 0; widen them to include padding zeros.")
    starts = tile_starts(q.shape[1], tile_size)
    if q.shape[1] == 0:
        empty = np.zeros((q.shape[0], 1), dtype=np.int64)
        return empty, empty.copy()
    if _magnitude(q) * max(_magnitude(low), _magnitude(high)) * q.shape[1] >= _INT64_SAFE:
        q, low, high = q.astype(object), low.astype(object), high.astype(object)
    # A few rows at a time: what stays in the cache is read from memory once.
    step = max(_CHUNK // q.shape[1], 1)
    parts = [
        _sums_of_rows(q[row : row + step], low, high, starts)
        for row in range(0, max(q.shape[0], 1), step)
    ]
    minimum, maximum = (np.concatenate(side) for side in zip(*parts, strict=True))
    return minimum, maximum


def _sums_of_rows(
    q: np.ndarray, low: np.ndarray, high: np.ndarray, starts: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """`worst_case_sums` of a few rows; their dtype is that of the weights, or object."""
    q = q if q.dtype == object else q.astype(np.int64)
    if low.ndim or high.ndim:
        at_low, at_high = q * low, q * high
        return (
            np.add.reduceat(np.minimum(at_low, at_high), starts, axis=1),
            np.add.reduceat(np.maximum(at_low, at_high), starts, axis=1),
        )
    # One range for all inputs: the sums of the positive and of the negative weights tell.
    positive = np.add.reduceat(np.maximum(q, 0), starts, axis=1)
    negative = np.add.reduceat(q, starts, axis=1) - positive
    return positive * low + negative * high, positive * high + negative * low


def required_bit_width(minimum: int, maximum: int) -> int:
    """Smallest P with both sums inside ±(2^(P-1) - 1); at least 2."""
    return max(2, max(abs(int(minimum)), abs(int(maximum))).bit_length() + 1)


def outer_bit_width(accumulator_bit_width: int, inputs: int, tile_size: int | None) -> int:
    """Width of the accumulator that adds the tiles' results: ⌈P_I + log2(K/T)⌉ (AXE, Eq. 22)."""
    tiles = len(tile_starts(inputs, tile_size))
    return accumulator_bit_width + (tiles - 1).bit_length()


def datatype_bound(
    inputs: int, input_bit_width: int, weight_bit_width: int, input_signed: bool
) -> int:
    """Width P* that no weights of these types can overflow (A2Q, Eq. 3-4).

    P* = ⌈log2(2^(log2 K + N + M - 1 - signed) + 1) + 1⌉, in integers. It counts the most negative
    weight and input, so it is exact for full-range types and one bit generous at most for narrow
    ones.

    Args:
        inputs: length K of the dot product.
        input_bit_width: N.
        weight_bit_width: M, signed weights.
        input_signed: True for signed inputs.
    """
    worst = inputs * 2 ** (input_bit_width - int(input_signed)) * 2 ** (weight_bit_width - 1)
    return worst.bit_length() + 1 if worst else 2


def a2q_l1_bound(accumulator_bit_width: int, input_bit_width: int, input_signed: bool) -> Fraction:
    """A2Q: ||q||_1 ≤ (2^(P-1) - 1)·2^(signed - N) (arXiv 2308.13504, Eq. 11)."""
    limit = accumulator_limit(accumulator_bit_width)
    return Fraction(limit * 2 ** int(input_signed), 2**input_bit_width)


def a2q_plus_l1_bound(accumulator_bit_width: int, input_bit_width: int) -> Fraction:
    """A2Q+: ||q||_1 ≤ (2^P - 2)/(2^N - 1) for zero-centred rows (arXiv 2401.10432, Eq. 12)."""
    return Fraction(2 * accumulator_limit(accumulator_bit_width), 2**input_bit_width - 1)


def axe_l1_radius(accumulator_bit_width: int, low: int, high: int) -> Fraction:
    """AXE: radius Z = (2^P - 2)/(high - low) of the l1 ball of a zero-centred tile (Eq. 12)."""
    if high <= low:
        raise MissingInputQuantizer(
            "an input range of width 0 leaves nothing to accumulate; quantize the input first."
        )
    return Fraction(2 * accumulator_limit(accumulator_bit_width), high - low)


def one_sided_budgets(accumulator_bit_width: int, low: int, high: int) -> tuple[int, int]:
    """Largest Σ of positive weights alone, and Σ of |negative| weights alone, that fit.

    For unsigned inputs (low = 0) the two are independent and together sufficient:
    S⁺ ≤ ⌊(2^(P-1)-1)/high⌋ and |S⁻| alike. For signed inputs they are necessary only; the joint
    condition is `fits`.
    """
    largest = max(-low, high)
    if largest == 0:
        raise MissingInputQuantizer(
            "an input range of width 0 leaves nothing to accumulate; quantize the input first."
        )
    budget = accumulator_limit(accumulator_bit_width) // largest
    return budget, budget


def fits(
    weights: Integers,
    low: Integers,
    high: Integers,
    accumulator_bit_width: int,
    tile_size: int | None = None,
) -> np.ndarray:
    """True for each row whose every tile stays inside ±(2^(P-1) - 1). Shape [rows]."""
    limit = accumulator_limit(accumulator_bit_width)
    minimum, maximum = worst_case_sums(weights, low, high, tile_size)
    inside = np.asarray((minimum >= -limit) & (maximum <= limit), dtype=bool)
    return np.asarray(inside.all(axis=1))


def _as_integers(values: Integers, name: str, keep: bool = False) -> np.ndarray:
    """The values as int64, or as Python integers; signed ones in their own type if `keep`."""
    array = np.asarray(values)
    if array.dtype == object:
        return array
    if array.dtype.kind in "iub":
        if array.dtype == np.uint64:
            return array.astype(object)
        return array if keep and array.dtype.kind == "i" else array.astype(np.int64)
    raise InvalidOption(f"{name} must be integers, but they are {array.dtype}; round them first.")


def _magnitude(array: np.ndarray) -> int:
    return max(abs(int(array.min())), abs(int(array.max()))) if array.size else 0
