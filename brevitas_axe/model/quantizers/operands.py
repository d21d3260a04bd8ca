"""Bits of the operands of a sum, which share a scale, and of which no layer may read some.

An unsigned operand of N bits and a signed one of N bits at the same scale do not reach equally far:
either the unsigned one uses half of its integers, or the signed one is clipped. With one bit more
for its sign the signed one reaches as far, at a scale of half the size.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Operands of fewer bits are left as Brevitas makes them: one more would be much of the hardware.
FEWEST = 8


class SharedSteps(nn.Module):
    """How many steps of the scale lie between zero and the end of an operand's range.

    It replaces Brevitas's `IntScaling` in the operands of a sum, and has no state. From 8 bits on
    it gives 2^N, N bits being those of an unsigned operand; below, 2^(N-1) as Brevitas does.

    Args:
        signed: of the operand.
        more: bits of the operand beyond those that are set, from 8 on; 1 for the sign.
    """

    def __init__(self, signed: bool, more: int) -> None:
        super().__init__()
        self.signed, self.more = signed, more

    def forward(self, bit_width: Tensor) -> Tensor:
        """Steps, for the bits that the operand really has."""
        half = 2 ** (bit_width - 1)
        return half if self.signed else torch.where(bit_width < FEWEST, half, 2 * half)


def extra_bits(quant: nn.Module) -> int:
    """Bits of a tensor quantizer beyond those that are set, from 8 on."""
    steps = getattr(quant, "int_scaling_impl", None)
    return steps.more if isinstance(steps, SharedSteps) else 0


def with_extra(bits: int, extra: int) -> int:
    """Bits of an operand where so many are set."""
    return bits + extra if bits >= FEWEST else bits


def without_extra(bits: int, extra: int) -> int:
    """Bits that are set where an operand has so many: the inverse of `with_extra`."""
    return bits - extra if bits - extra >= FEWEST else bits


def scaling_parts(module: nn.Module | None) -> tuple[Any, ...]:
    """What an activation quantizer may share with others: all of it, or its scale."""
    proxy: Any = getattr(module, "act_quant", None)
    quant = getattr(getattr(proxy, "fused_activation_quant_proxy", None), "tensor_quant", None)
    return () if quant is None else (quant, quant.scaling_impl)


def give_sign_bits(proxies: Iterable[Any]) -> None:
    """Gives the signed among the operands of a sum a bit for their sign, from 8 on.

    The bits of those that are signed have to be set anew afterwards.

    Args:
        proxies: quantizers that share a scale; changed.
    """
    for proxy in proxies:
        quant = proxy.fused_activation_quant_proxy.tensor_quant
        quant.int_scaling_impl = SharedSteps(proxy.is_signed, more=int(proxy.is_signed))
