"""Tensors on an integer grid, and the arithmetic that puts them there.

A tensor's value is `scale × integer`. What is known of every tensor of a file is one of:
`Grid` (its values are on a grid, with these integers), `Constant` (its values are in the file) or
`Unknown` (neither, and why). Quantizers are computed as QONNX executes them, in the arithmetic
of their own arrays (float32), so that the integers here are the integers there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

MAX_WEIGHT_BITS = 32
MAX_INPUT_BITS = 64


class Unprovable(Exception):
    """Internal: this tensor cannot be put on a grid; the text says why, without a full stop."""


@dataclass(frozen=True)
class Unknown:
    """Nothing provable about this tensor."""

    reason: str


@dataclass(frozen=True)
class Constant:
    """Values that are in the file.

    Attributes:
        values: the array.
        name: initializer or node that defines it.
        onnx_type: TensorProto element type.
        note: why its datatype annotation is wrong; empty where it is right or there is none.
    """

    values: np.ndarray
    name: str
    onnx_type: int
    note: str = ""

    @cached_property
    def grid(self) -> Grid | None:
        """The values as a grid of scale 1, None unless all are integers; thousands may ask."""
        integers = exact_integers(self.values)
        if integers is None:
            return None
        low, high = int(integers.min()), int(integers.max())
        declared = covering_type(low, high)
        return Grid(np.ones(()), low, high, declared, integers, weight=self.name)


@dataclass(frozen=True)
class Grid:
    """Values `scale × integer`, zero point already subtracted.

    Attributes:
        scale: scalar, or broadcastable to the tensor; finite, nowhere 0.
        low: smallest integer; high: largest integer.
        type: qonnx DataType name of the stored integers.
        integers: int64, when the tensor is constant.
        asymmetric: a non-zero zero point was subtracted.
        weight: initializer of the values, when constant.
        assumptions: what is trusted without a check, one sentence each.
        stored: TensorProto element type, where the tensor is a constant of the file.
        wraps: the tensor has an integer element type, in which sums and products wrap around.
        typed: range of the declared datatype, where it is not [low, high]; hardware may be sized
            by either.
        unshifted: [low, high] before a constant was added, which hardware may move elsewhere.
    """

    scale: np.ndarray
    low: int
    high: int
    type: str
    integers: np.ndarray | None = None
    asymmetric: bool = False
    weight: str | None = None
    assumptions: tuple[str, ...] = ()
    stored: int = 0
    wraps: bool = False
    typed: tuple[int, int] | None = None
    unshifted: tuple[int, int] | None = None

    @property
    def scalar(self) -> bool:
        """One scale for the whole tensor."""
        return self.scale.size == 1

    @property
    def constant(self) -> np.ndarray:
        """The integers of a constant grid; raises Unprovable for a computed one."""
        if self.integers is None:
            raise Unprovable("it is not constant")
        return self.integers

    @property
    def values(self) -> np.ndarray:
        """The real values of a constant grid."""
        return self.constant * self.scale

    @property
    def widened(self) -> Grid:
        """The grid over the range that its values or its declared type can take."""
        if self.typed is None:
            return self
        low, high = min(self.low, self.typed[0]), max(self.high, self.typed[1])
        return replace(self, low=low, high=high, typed=None)

    def mapped(self, function: Callable[[np.ndarray], np.ndarray]) -> Grid:
        """The constant grid after an operation that only moves or repeats elements."""
        scale = self.scale
        if not self.scalar:
            scale = function(np.broadcast_to(scale, self.constant.shape))
        return replace(self, integers=function(self.constant), scale=scale)


Fact = Grid | Constant | Unknown


def is_constant(fact: Fact) -> bool:
    """True when the tensor's values are in the file."""
    return isinstance(fact, Constant) or (isinstance(fact, Grid) and fact.integers is not None)


def checked_scale(scale: np.ndarray, where: str) -> np.ndarray:
    """The scale, collapsed to a scalar where all its values agree."""
    scale = np.asarray(scale)
    if scale.size == 0 or scale.dtype.kind not in "fiu":
        raise Unprovable(f"{where} has no scale that is a number")
    if not np.isfinite(scale).all() or np.any(scale == 0):
        raise Unprovable(f"{where} has a scale that is 0, infinite or NaN")
    return scale.reshape(-1)[0] * np.ones((), scale.dtype) if np.ptp(scale) == 0 else scale


def single_integer(values: np.ndarray, what: str, low: int, high: int) -> int:
    """The only value of an array, an integer between low and high."""
    values = np.asarray(values)
    if values.size == 0 or not np.isfinite(values).all() or np.ptp(values) != 0:
        raise Unprovable(f"{what} is not one finite number")
    value = float(values.reshape(-1)[0])
    if value != int(value) or not low <= value <= high:
        raise Unprovable(f"{what} is {value:g}, not an integer from {low} to {high}")
    return int(value)


def quantizer_range(bits: int, signed: bool, narrow: bool) -> tuple[int, int]:
    """Integers of a QONNX Quant, zero point included. Signed one-bit means -1 and 1."""
    if signed and bits == 1:
        return -1, 1
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def representable_range(low: int, high: int, kind: np.dtype, where: str) -> tuple[int, int]:
    """The range with its ends rounded to a floating-point type, never smaller than before.

    QONNX clips to the ends of a range in the arrays' own precision: in float32 the largest integer
    of 25 unsigned bits becomes 2^25, one more than the range has.
    """
    if kind.kind != "f":
        return low, high
    with np.errstate(over="ignore"):
        ends = kind.type(low), kind.type(high)
    if not np.isfinite(ends).all():
        raise Unprovable(f"{where} has a range that its floating-point type cannot hold")
    return min(low, int(ends[0])), max(high, int(ends[1]))


def type_name(bits: int, signed: bool) -> str:
    """DataType name, as qonnx has it, of a Quant's integers."""
    if bits == 1:
        return "BIPOLAR" if signed else "BINARY"
    return f"{'INT' if signed else 'UINT'}{bits}"


def covering_type(low: int, high: int) -> str:
    """Smallest qonnx DataType that holds the integers from low to high."""
    if low < 0:
        return f"INT{max((-low - 1).bit_length(), high.bit_length()) + 1}"
    return type_name(max(high.bit_length(), 1), signed=False)


def rounding(mode: str) -> Callable[[np.ndarray], np.ndarray]:
    """QONNX rounding mode as a function; raises Unprovable for an unknown one."""
    modes = {
        "ROUND": np.round,
        "HALF_EVEN": np.round,
        "CEIL": np.ceil,
        "FLOOR": np.floor,
        "UP": lambda x: np.sign(x) * np.ceil(np.abs(x)),
        "DOWN": np.trunc,
        "HALF_UP": lambda x: np.sign(x) * np.floor(np.abs(x) + 0.5),
        "HALF_DOWN": lambda x: np.sign(x) * np.ceil(np.abs(x) - 0.5),
    }
    if mode.upper() not in modes:
        raise Unprovable(f"rounding mode '{mode[:20]}' is unknown")
    return modes[mode.upper()]


def quantize(
    values: np.ndarray,
    scale: np.ndarray,
    zero_point: int,
    bits: int,
    signed: bool,
    narrow: bool,
    mode: str,
    widths: np.dtype | None = None,
) -> np.ndarray:
    """Integers of QONNX's Quant on a constant, zero point included.

    The steps and their order are those of the QONNX standard: divide, add the zero point, clip,
    round; in the arrays' own precision.

    Args:
        values: to quantize.
        scale: broadcastable to them.
        zero_point: integer that is added.
        bits: of the integers.
        signed: two's complement.
        narrow: without the most negative (signed) or the largest (unsigned) integer.
        mode: of rounding.
        widths: type of the bit width, in which the ends of the range are computed.

    Returns:
        int64, shape of values.

    Raises:
        Unprovable: values are not finite, or the scale does not broadcast to them.
    """
    if bits > MAX_WEIGHT_BITS:
        raise Unprovable(f"{bits}-bit weights are wider than {MAX_WEIGHT_BITS} bits")
    scaled = values / scale + values.dtype.type(zero_point)
    if scaled.shape != values.shape:
        raise Unprovable("its scale does not fit its shape")
    if not np.isfinite(scaled).all():
        raise Unprovable("its values are infinite or NaN")
    if signed and bits == 1:
        return np.where(scaled >= 0, 1, -1).astype(np.int64)
    low, high = quantizer_range(bits, signed, narrow)
    # Clip in the array's precision, as QONNX does. Where that rounds a bound, readers may differ.
    kind = widths if widths is not None and widths.kind == "f" else scaled.dtype
    ends = (scaled.dtype.type(kind.type(end)) for end in (low, high))
    clipped = np.clip(scaled, *ends)
    rounded = rounding(mode)(clipped).astype(np.int64)
    if np.any(rounded < low) or np.any(rounded > high):
        raise Unprovable(f"its values meet a bound of {bits} bits that {scaled.dtype} cannot hold")
    return rounded


def settled(values: np.ndarray, scale: np.ndarray, source_scale: np.ndarray, mode: str) -> bool:
    """True when no rounding error of float32 can change what values / scale is rounded to.

    Values that were computed, such as those of another quantizer, carry such errors; products and
    quotients of powers of two do not.
    """
    exact = all(bool(np.all(np.abs(np.frexp(s)[0]) == 0.5)) for s in (scale, source_scale))
    if exact:
        return True
    scaled = np.asarray(values, np.float64) / np.asarray(scale, np.float64)
    middles = mode.upper() in ("ROUND", "HALF_EVEN", "HALF_UP", "HALF_DOWN")
    edges = np.floor(scaled) + 0.5 if middles else np.rint(scaled)
    return bool(np.all(np.abs(scaled - edges) > 2.0**-20 * np.maximum(np.abs(scaled), 1.0)))


def exact_integers(values: np.ndarray) -> np.ndarray | None:
    """The values as int64 if each one is an integer of at most 32 bits, else None."""
    if values.dtype.kind not in "fiub" or values.size == 0:
        return None
    with np.errstate(invalid="ignore"):
        if not np.all(np.abs(values.astype(np.float64)) <= 2.0**MAX_WEIGHT_BITS):
            return None
        integers = values.astype(np.int64)
    return integers if np.all(integers == values) else None


def integer_constant(constant: Constant) -> Grid:
    """An unscaled constant as a grid of scale 1, if its values are integers."""
    if constant.note:
        raise Unprovable(constant.note)
    if constant.grid is None:
        raise Unprovable(f"'{constant.name}' holds values that are not integers; quantize it")
    return constant.grid
