"""Floating-point tensors of Brevitas as integers on their finest grid, checked and never trusted.

Every finite number of a format is a whole multiple of its smallest one. So what adds up products of
two formats exactly is an accumulator of integers, as with any other quantizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from brevitas.quant_tensor import FloatQuantTensor

from brevitas_axe.proof.graph.grid import Unprovable, single_integer

_MAX_EXPONENT, _MAX_MANTISSA = 5, 10


@dataclass(frozen=True)
class Numbers:
    """The finite numbers of a format.

    Attributes:
        step: the smallest above zero, of which the others are multiples.
        largest: the largest, over step.
        mantissa: bits behind the leading one.
        signed: whether there are negative ones.
        type: qonnx DataType.
    """

    step: float
    largest: int
    mantissa: int
    signed: bool
    type: str

    @property
    def lowest(self) -> int:
        """The most negative number over step."""
        return -self.largest if self.signed else 0


def numbers_of(value: FloatQuantTensor, what: str) -> Numbers:
    """The numbers that a tensor may have, over its scale.

    Args:
        value: the tensor.
        what: name of it in messages.

    Raises:
        Unprovable: values that are infinite or none, or a format of other widths than hardware has.
    """
    exponent = _width(value.exponent_bit_width, f"the {what} exponent's width", 1, _MAX_EXPONENT)
    mantissa = _width(value.mantissa_bit_width, f"the {what} mantissa's width", 0, _MAX_MANTISSA)
    bias = _width(value.exponent_bias, f"the {what} exponent's bias", -64, 64)
    if not value.saturating:
        raise Unprovable(f"its {what} becomes infinite where it is large; use a saturating format")
    if np.any(_array(value.zero_point) != 0):
        raise Unprovable(f"its {what} is of floating-point numbers with a zero point")
    codes = [int(code, 2) for code in (*(value.inf_values or ()), *(value.nan_values or ()))]
    # Special values have the largest exponent, and mantissas from the smallest of these on.
    last = 2 ** (exponent + mantissa) - 1
    if codes:
        last -= 2**mantissa - min(codes)
    power, fraction = divmod(last, 2**mantissa)
    largest = fraction if power == 0 else (2**mantissa + fraction) << (power - 1)
    name = f"FLOAT<{exponent},{mantissa},{bias}>"
    return Numbers(2.0 ** (1 - bias - mantissa), largest, mantissa, bool(value.signed), name)


def integers_of(value: FloatQuantTensor, numbers: Numbers, what: str) -> np.ndarray:
    """The tensor's values over scale and step, int64, shape of the values.

    Raises:
        Unprovable: a value that is no number of the format, or is not finite.
    """
    scale = _array(value.scale)
    if scale.size == 0 or not np.isfinite(scale).all() or np.any(scale == 0):
        raise Unprovable(f"its {what} scale is 0, infinite or NaN")
    ratio = _array(value.value) / (scale * numbers.step)
    if not np.isfinite(ratio).all():
        raise Unprovable(f"its {what} contains NaN or infinity")
    _, exponent = np.frexp(ratio)
    # Of numbers with one bit in front of the mantissa; those below are multiples of 1.
    gap = np.exp2(np.maximum(exponent - numbers.mantissa - 1, 0))
    nearest = np.rint(ratio / gap)
    # value = number · scale was rounded once or twice in its own precision.
    tolerance = 4 * torch.finfo(value.value.dtype).eps * np.abs(nearest) + 1e-6
    if np.any(np.abs(ratio / gap - nearest) > tolerance):
        raise Unprovable(f"its {what} values are no numbers of {numbers.type} times their scale")
    integers = nearest * gap
    if integers.size and (integers.min() < numbers.lowest or integers.max() > numbers.largest):
        raise Unprovable(f"its {what} lies outside its declared {numbers.type}")
    return integers.astype(np.int64)


def _width(value: object, what: str, low: int, high: int) -> int:
    return single_integer(_array(value), what, low, high)


def _array(tensor: object) -> np.ndarray:
    return torch.as_tensor(tensor).detach().cpu().to(torch.float64).numpy()
