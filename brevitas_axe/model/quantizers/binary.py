"""Weights of one bit: -1 and 1, both the same distance from zero, and never 0.

A signed grid of one bit would have the integers -1 and 0, and a narrow one 0 alone. Two levels
around zero are what a multiplication needs least of (a change of sign), what QONNX calls
`BipolarQuant` and FINN BIPOLAR, and what the groups of one bit in SliM-LLM (arXiv 2405.14917) are
but for their mean. No weight can be made smaller: a tile of T inputs needs an accumulator that
holds T times the largest input, whatever the signs.
"""

from __future__ import annotations

import torch
from brevitas.core.quant import IntQuant
from brevitas.function.ops_ste import binary_sign_ste
from torch import Tensor, nn


class Sign(nn.Module):
    """Rounds to 1 from zero on, else to -1; gradients pass as through other roundings."""

    def forward(self, x: Tensor) -> Tensor:
        return binary_sign_ste(x)


class BinaryIntQuant(IntQuant):
    """The integers -1 and 1, in the place of Brevitas's `IntQuant`."""

    def __init__(self, input_view_impl: nn.Module) -> None:
        super().__init__(True, True, input_view_impl, float_to_int_impl=Sign())

    def min_int(self, bit_width: Tensor) -> Tensor:
        return -torch.ones_like(bit_width)

    def max_int(self, bit_width: Tensor) -> Tensor:
        return torch.ones_like(bit_width)


class OneStep(nn.Module):
    """One step of the scale lies between zero and the end of the range, whatever the bits.

    It replaces Brevitas's `IntScaling`, and has no state.
    """

    def forward(self, bit_width: Tensor) -> Tensor:
        return torch.ones_like(bit_width)
