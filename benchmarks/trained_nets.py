"""The two small networks that the training benchmarks step: a ResNet-8 and a transformer block."""

from __future__ import annotations

from collections.abc import Callable

import brevitas.nn as qnn
import torch
import torch.nn.functional as F
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

INPUT_BITS = 8


class Residual(nn.Module):
    """Two 3×3 convolutions with batch norms around a shortcut, 1×1 where the stride is 2."""

    def __init__(self, inputs: int, outputs: int, stride: int, weight: dict) -> None:
        super().__init__()
        self.first = convolution(inputs, outputs, 3, stride, weight)
        self.second = convolution(outputs, outputs, 3, 1, weight)
        same = stride == 1
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride, weight)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] to [batch, outputs, height / stride, width / stride]."""
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def convolution(inputs: int, outputs: int, kernel: int, stride: int, weight: dict) -> nn.Module:
    """Convolution of unsigned inputs, with batch norm."""
    quantizers = {"input_quant": Uint8ActPerTensorFloat, "input_bit_width": INPUT_BITS, **weight}
    shape = (inputs, outputs, kernel, stride, kernel // 2)
    return nn.Sequential(qnn.QuantConv2d(*shape, bias=False, **quantizers), nn.BatchNorm2d(outputs))


def resnet8(weight: dict, classes: int = 10) -> nn.Module:
    """ResNet-8 for 32×32 images (MLPerf Tiny's), 78 thousand weights.

    Args:
        weight: keyword arguments of Brevitas layers that choose the weight quantizer.
        classes: number of logits.
    """
    return nn.Sequential(
        convolution(3, 16, 3, 1, weight),
        nn.ReLU(),
        Residual(16, 16, 1, weight),
        Residual(16, 32, 2, weight),
        Residual(32, 64, 2, weight),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        qnn.QuantLinear(
            64,
            classes,
            input_quant=Uint8ActPerTensorFloat,
            input_bit_width=INPUT_BITS,
            **weight,
        ),
    )


class Block(nn.Module):
    """Pre-norm transformer block, signed inputs to its four linear layers."""

    def __init__(self, weight: dict, width: int = 192, heads: int = 6) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        quantizers = {"input_quant": Int8ActPerTensorFloat, "input_bit_width": INPUT_BITS, **weight}
        self.qkv = qnn.QuantLinear(width, 3 * width, **quantizers)
        self.proj = qnn.QuantLinear(width, width, **quantizers)
        self.up = qnn.QuantLinear(width, 4 * width, **quantizers)
        self.down = qnn.QuantLinear(4 * width, width, **quantizers)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] to the same shape."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        heads = (t.transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True)
        x = x + self.proj(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


NETS: dict[str, tuple[Callable[[dict], nn.Module], Callable[[], Tensor]]] = {
    "ResNet-8": (resnet8, lambda: torch.rand(32, 3, 32, 32)),
    "transformer block": (Block, lambda: torch.randn(16, 64, 192)),
}
