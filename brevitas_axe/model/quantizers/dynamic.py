"""Input quantizers whose scale follows each tensor, or each token (row) of it, at run time.

Pass one as `input_quant=`. Brevitas has the proxy for them, but no per-tensor or per-token scale.
The zero point of an asymmetric one is any integer of its type, and so the accumulator's budget
counts inputs from -(2^N - 1) to 2^N - 1, twice the range of a static quantizer.
"""

from __future__ import annotations

import torch
from brevitas.inject import ExtendedInjector
from brevitas.proxy.runtime_quant import DynamicActQuantProxyFromInjector
from brevitas.quant import Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat
from torch import Tensor, nn


class DynamicScale(nn.Module):
    """Scale from the extremes of the tensor, or of each row along its last axis.

    Args:
        per_token: one scale per row instead of one per tensor.
        signed: from the largest magnitude; else from the span of the values and zero.
        scaling_min_val: smallest span, so that a row of zeros has a scale.
    """

    def __init__(self, per_token: bool, signed: bool, scaling_min_val: float) -> None:
        super().__init__()
        self.per_token, self.signed, self.smallest = per_token, signed, scaling_min_val

    def forward(self, x: Tensor, threshold: Tensor) -> Tensor:
        low, high = _extremes(x, self.per_token)
        span = torch.maximum(high, -low) if self.signed else high - low
        return span.clamp_min(self.smallest) / threshold


class DynamicZeroPoint(nn.Module):
    """The integer that stands for zero, inside the unsigned type."""

    def __init__(self, per_token: bool) -> None:
        super().__init__()
        self.per_token = per_token

    def forward(self, x: Tensor, scale: Tensor, bit_width: Tensor) -> Tensor:
        low, _ = _extremes(x, self.per_token)
        return torch.minimum((-low / scale).round(), 2**bit_width - 1)


def _extremes(x: Tensor, per_token: bool) -> tuple[Tensor, Tensor]:
    """(smallest, largest) value, zero included, of the tensor or of each row."""
    x = x.detach()
    low, high = x.aminmax(dim=-1, keepdim=True) if per_token else x.aminmax()
    return low.clamp_max(0), high.clamp_min(0)


class _Dynamic(ExtendedInjector):
    proxy_class = DynamicActQuantProxyFromInjector
    scaling_impl = DynamicScale
    per_token = False


class _PerToken(_Dynamic):
    per_token = True


class Int8DynamicActPerTensorFloat(_Dynamic, Int8ActPerTensorFloat):
    """8-bit signed activations, one float scale per tensor, computed at run time."""


class Int8DynamicActPerTokenFloat(_PerToken, Int8ActPerTensorFloat):
    """8-bit signed activations, one float scale per token, computed at run time."""


class ShiftedUint8DynamicActPerTensorFloat(_Dynamic, ShiftedUint8ActPerTensorFloat):
    """8-bit unsigned activations, float scale and zero point per tensor, computed at run time."""

    zero_point_impl = DynamicZeroPoint


class ShiftedUint8DynamicActPerTokenFloat(_PerToken, ShiftedUint8ActPerTensorFloat):
    """8-bit unsigned activations, float scale and zero point per token, computed at run time."""

    zero_point_impl = DynamicZeroPoint
