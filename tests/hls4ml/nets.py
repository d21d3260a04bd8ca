"""Small fixed-point nets as hls4ml's users write them, trained on the digits of scikit-learn.

All scales are powers of two and all biases are multiples of the accumulator's unit, so that torch
and C++ can be compared without a tolerance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.core.function_wrapper import RoundSte
from brevitas.core.restrict_val import PowerOfTwoRestrictValue
from brevitas.quant import Int16Bias
from brevitas.quant.scaled_int import Int8AccumulatorAwareZeroCenterWeightQuant
from sklearn.datasets import load_digits
from torch import Tensor, nn

from brevitas_axe import LayerPrecision, Plan, quantize
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerTensorFixedPointAXE,
)
from brevitas_axe.run.finetune import finetune
from tests.finn.nets import Maker, Style, Widths, train

MIXED = (Widths(6, 3, 12), Widths(3, 4, 9), Widths(4, 2, 10), Widths(3, 5, 9))
_PLUS: Any = Int8AccumulatorAwareZeroCenterWeightQuant
STYLES = {
    "solved": Style(Int8WeightPerChannelFixedPointAXE, True, (Widths(accumulator=10),)),
    "fine-tuned": Style(Int8WeightPerTensorFixedPointAXE, True, MIXED, bounded=True),
    "A2Q+": Style(
        _PLUS.let(
            restrict_scaling_impl=PowerOfTwoRestrictValue, restrict_value_float_to_int_impl=RoundSte
        ),
        True,
        MIXED,
        bounded=True,
    ),
}


class Layers(Maker):
    """Layers with quantized biases, and no batch norm."""

    def layer(self, kind: type, *args: Any, relu: bool = True, **options: Any) -> nn.Sequential:
        layer, widths = self.dot(kind, *args, bias=True, bias_quant=Int16Bias, **options)
        block = nn.Sequential()
        block.add_module("layer", layer)
        if relu:
            block.add_module("relu", self.relu(widths.activation))
        return block

    def head(self, inputs: int) -> nn.Module:
        return self.layer(qnn.QuantLinear, inputs, 10, relu=False)


def dense(make: Layers) -> nn.Module:
    """Three dense layers."""
    return nn.Sequential(
        make.signed(6),
        make.layer(qnn.QuantLinear, 64, 16),
        make.layer(qnn.QuantLinear, 16, 12),
        make.head(12),
    )


def conv1d(make: Layers) -> nn.Module:
    """1-D convolutions over the rows of an image as channels, one of them depthwise and strided."""
    return nn.Sequential(
        make.signed(6),
        make.layer(qnn.QuantConv1d, 8, 6, 3, padding=1),
        make.layer(qnn.QuantConv1d, 6, 6, 3, padding=1, stride=2, groups=6),
        make.layer(qnn.QuantConv1d, 6, 4, 1),
        nn.Flatten(),
        make.head(16),
    )


def conv2d(make: Layers) -> nn.Module:
    """Convolutions, max pooling, a dense head behind a Flatten."""
    return nn.Sequential(
        make.signed(6),
        make.layer(qnn.QuantConv2d, 1, 4, 3, padding=1),
        nn.MaxPool2d(2),
        make.layer(qnn.QuantConv2d, 4, 6, 3),
        nn.Flatten(),
        make.head(24),
    )


def depthwise(make: Layers) -> nn.Module:
    """Depthwise and pointwise convolutions, and averages over windows and over the image."""
    return nn.Sequential(
        make.unsigned(6),
        make.layer(qnn.QuantConv2d, 1, 4, 3, padding=1),
        make.layer(qnn.QuantConv2d, 4, 4, 3, padding=1, groups=4),
        make.layer(qnn.QuantConv2d, 4, 8, 1),
        nn.AvgPool2d(2),
        make.unsigned(6),
        nn.AdaptiveAvgPool2d(1),
        make.unsigned(6),
        nn.Flatten(),
        make.head(8),
    )


class Residual(nn.Module):
    """relu(f(x) + x)."""

    def __init__(self, make: Layers) -> None:
        super().__init__()
        self.stem = make.layer(qnn.QuantConv2d, 1, 4, 3, padding=1, stride=2)
        self.inner = make.layer(qnn.QuantConv2d, 4, 4, 3, padding=1)
        self.outer = make.layer(qnn.QuantConv2d, 4, 4, 3, padding=1, relu=False)
        self.grid = make.signed(6)
        self.relu = make.relu(4)

    def forward(self, x: Any) -> Any:
        x = self.stem(x)
        return self.relu(self.grid(self.outer(self.inner(x))) + self.grid(x))


class Branches(nn.Module):
    """Two convolutions side by side, one ReLU for what both give."""

    def __init__(self, make: Layers) -> None:
        super().__init__()
        self.left = make.layer(qnn.QuantConv2d, 1, 3, 3, padding=1, stride=2, relu=False)
        self.right = make.layer(qnn.QuantConv2d, 1, 2, 3, padding=1, stride=2, relu=False)
        self.relu = make.relu(4)

    def forward(self, x: Any) -> Any:
        return self.relu(torch.cat([self.left(x), self.right(x)], 1))


def residual(make: Layers) -> nn.Module:
    """A residual block between a strided convolution and a dense head."""
    return nn.Sequential(make.signed(6), Residual(make), nn.Flatten(), make.head(64))


def concatenation(make: Layers) -> nn.Module:
    """Two branches that are joined, and a convolution that reads both."""
    return nn.Sequential(
        make.signed(6),
        Branches(make),
        make.layer(qnn.QuantConv2d, 5, 4, 3),
        nn.Flatten(),
        make.head(16),
    )


# With the shape of one sample.
NETS: dict[str, tuple[Callable[[Layers], nn.Module], tuple[int, ...]]] = {
    "dense": (dense, (64,)),
    "conv1d": (conv1d, (8, 8)),
    "conv2d": (conv2d, (1, 8, 8)),
    "depthwise": (depthwise, (1, 8, 8)),
    "residual": (residual, (1, 8, 8)),
    "concatenation": (concatenation, (1, 8, 8)),
}


def digits(name: str) -> tuple[Tensor, Tensor]:
    """Images [N, *shape] in [0, 1] as a net takes them, and labels [N]."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).reshape(-1, *NETS[name][1])
    return images / 16, torch.tensor(data.target)


def finished(
    name: str, origin: str, steps: int = 40, budget: bool = True
) -> tuple[nn.Module, dict[str, int]]:
    """A trained net, and the accumulator width of each layer that it holds.

    Args:
        name: of NETS.
        origin: of STYLES.
        steps: of training.
        budget: False trains the same net with ordinary weight quantizers.
    """
    style = STYLES[origin]
    if not budget:
        style = Style(_plain(origin), True, style.widths)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = Layers(style)
        model = NETS[name][0](make)
        train(model, *digits(name), steps)
    model.eval()
    names = [n for n, m in model.named_modules() if hasattr(m, "weight_quant")]
    accumulators = dict(zip(names, make.accumulators, strict=True))
    if budget and origin == "solved":
        plan = Plan({n: LayerPrecision(accumulator=bits) for n, bits in accumulators.items()})
        model = quantize(model, [digits(name)[0][:128]], plan=plan, progress=False).model
    if budget and origin == "fine-tuned":
        images, labels = (part[:512].split(64) for part in digits(name))
        loader = list(zip(images, labels, strict=True))
        model = finetune(model, loader, epochs=1, progress=False).model
    return model, accumulators


def _plain(origin: str) -> type:
    """Brevitas's ordinary quantizer of the same scales."""
    per_tensor = origin == "fine-tuned"
    return Int8WeightPerTensorFixedPointAXE if per_tensor else Int8WeightPerChannelFixedPointAXE


def samples(name: str, count: int = 32) -> Tensor:
    """Half of them images that were not trained on, half of them noise beyond their range."""
    images = digits(name)[0][-count // 2 :]
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(1)) * 3 - 1
    return torch.cat([images, noise])
