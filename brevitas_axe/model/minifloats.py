"""Tensors of floating-point numbers of few bits, as integers on their finest grid."""

from __future__ import annotations

import torch
from brevitas.quant_tensor import FloatQuantTensor
from torch import Tensor

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.formats import MINIFLOATS


def format_of(tensor: FloatQuantTensor) -> str:
    """The name of the format that a quantized tensor is in.

    Raises:
        UnsupportedLayer: none of `MINIFLOATS`, or one that does not saturate.
    """
    exponent, mantissa = int(tensor.exponent_bit_width), int(tensor.mantissa_bit_width)
    codes = {*(tensor.inf_values or ()), *(tensor.nan_values or ())}
    mine = (exponent, mantissa, int(tensor.exponent_bias), len(codes))
    for name, known in MINIFLOATS.items():
        same = mine == (known.exponent, known.mantissa, known.bias, known.reserved)
        if same and tensor.signed and tensor.saturating:
            return name
    raise UnsupportedLayer(
        f"a quantizer gives floating-point numbers of {exponent} bits of exponent and {mantissa} "
        f"of mantissa, which is none of the formats {', '.join(MINIFLOATS)}, or not signed and "
        "saturating; use one of these."
    )


def nearest_significant(numbers: Tensor, bits: int | None) -> Tensor:
    """The nearest integers with so many significant bits; ties go to the even one.

    Args:
        numbers: of any shape, below 2^53.
        bits: those that an integer may begin with, all behind them being zero; None for all.
    """
    if bits is None:
        return numbers.round()
    _, exponent = torch.frexp(numbers)
    step = torch.ldexp(torch.ones_like(numbers), (exponent - bits).clamp_min(0))
    return (numbers / step).round() * step
