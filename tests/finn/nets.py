"""Small nets as a user of Brevitas and FINN writes them, trained on the digits of scikit-learn.

A net is a plain function of a `Style`. Batch norms start with gains of both signs and are trained,
so that FINN has signs to flip and thresholds of every kind to compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    TruncTo8bit,
    Uint8ActPerTensorFixedPoint,
    Uint8ActPerTensorFloat,
)
from sklearn.datasets import load_digits
from torch import Tensor, nn

from brevitas_axe.model.layers import Layer
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE

_CLASSES = 10


@dataclass(frozen=True)
class Widths:
    """Bits of a layer's weights, of the activations behind it, and of its accumulator."""

    weight: int = 4
    activation: int = 4
    accumulator: int = 13


@dataclass(frozen=True)
class Style:
    """How a net is quantized.

    Attributes:
        weight_quant: Brevitas weight quantizer.
        power_of_two: activations have power-of-two scales.
        widths: of the layers in order of construction, from the start again where they run out.
        bounded: the weight quantizers get their accumulator widths; otherwise a solver will.
    """

    weight_quant: type = Int8WeightPerChannelFloatAXE
    power_of_two: bool = False
    widths: tuple[Widths, ...] = (Widths(),)
    bounded: bool = False


class Maker:
    """Makes the layers of one net, each with the next widths."""

    def __init__(self, style: Style) -> None:
        self.style = style
        self.widths: Iterator[Widths] = cycle(style.widths)
        self.accumulators: list[int] = []

    def dot(self, kind: type, *args: Any, **options: Any) -> tuple[Layer, Widths]:
        """A layer with integer weights, and its widths."""
        widths = next(self.widths)
        self.accumulators.append(widths.accumulator)
        if self.style.bounded:
            options["weight_accumulator_bit_width"] = widths.accumulator
        layer = kind(
            *args,
            weight_quant=self.style.weight_quant,
            weight_bit_width=widths.weight,
            **options,
        )
        return layer, widths

    def block(self, kind: type, *args: Any, relu: bool = True, **options: Any) -> nn.Sequential:
        """Layer, batch norm, and ReLU."""
        layer, widths = self.dot(kind, *args, bias=False, **options)
        norm = nn.BatchNorm2d if kind is qnn.QuantConv2d else nn.BatchNorm1d
        modules = {"layer": layer, "norm": norm(layer.weight.shape[0])}
        if relu:
            modules["relu"] = self.relu(widths.activation)
        block = nn.Sequential()
        for name, module in modules.items():
            block.add_module(name, module)
        return block

    def head(self, inputs: int) -> nn.Module:
        return self.dot(qnn.QuantLinear, inputs, _CLASSES, bias=True)[0]

    def signed(self, bits: int) -> nn.Module:
        quant = Int8ActPerTensorFixedPoint if self.style.power_of_two else Int8ActPerTensorFloat
        return qnn.QuantIdentity(quant, bit_width=bits, return_quant_tensor=True)

    def unsigned(self, bits: int) -> nn.Module:
        return qnn.QuantIdentity(self._unsigned, bit_width=bits, return_quant_tensor=True)

    def relu(self, bits: int) -> nn.Module:
        return qnn.QuantReLU(act_quant=self._unsigned, bit_width=bits, return_quant_tensor=True)

    @property
    def _unsigned(self) -> type:
        return Uint8ActPerTensorFixedPoint if self.style.power_of_two else Uint8ActPerTensorFloat


def mlp(make: Maker) -> nn.Module:
    """The shape of TFC: dense layers only."""
    return nn.Sequential(
        make.signed(8),
        make.block(qnn.QuantLinear, 64, 24),
        make.block(qnn.QuantLinear, 24, 24),
        make.head(24),
    )


def cnv(make: Maker) -> nn.Module:
    """The shape of CNV: convolutions, max pooling, dense layers."""
    return nn.Sequential(
        make.signed(8),
        make.block(qnn.QuantConv2d, 1, 8, 3, padding=1),
        make.block(qnn.QuantConv2d, 8, 8, 3, padding=1),
        nn.MaxPool2d(2),
        make.block(qnn.QuantConv2d, 8, 12, 3),
        nn.Flatten(),
        make.block(qnn.QuantLinear, 48, 16),
        make.head(16),
    )


def mobilenet(make: Maker) -> nn.Module:
    """Depthwise and pointwise convolutions, one of them strided, and average pooling."""
    return nn.Sequential(
        make.unsigned(8),
        make.block(qnn.QuantConv2d, 1, 8, 3, padding=1),
        make.block(qnn.QuantConv2d, 8, 8, 3, padding=1, groups=8),
        make.block(qnn.QuantConv2d, 8, 12, 1),
        make.block(qnn.QuantConv2d, 12, 12, 3, padding=1, stride=2, groups=12),
        make.block(qnn.QuantConv2d, 12, 16, 1),
        # FINN shifts: its average pooling takes no other rounding.
        qnn.TruncAvgPool2d(4, trunc_quant=TruncTo8bit, bit_width=4),
        nn.Flatten(),
        make.head(16),
    )


class Residual(nn.Module):
    """relu(f(x) + x), both terms on one grid, as FINN needs it."""

    def __init__(self, make: Maker, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        kind = qnn.QuantConv2d
        self.first = make.block(kind, inputs, outputs, 3, padding=1, stride=stride)
        self.second = make.block(kind, outputs, outputs, 3, padding=1, relu=False)
        changes = inputs != outputs or stride != 1
        self.skip = (
            make.block(kind, inputs, outputs, 1, stride=stride, relu=False) if changes else None
        )
        # Finer than what follows, so that some sums are ties: exact ones where steps are powers of
        # two, and up to float rounding where both quantizers saturate (62/15 of the step).
        self.grid = make.signed(6)
        self.relu = make.relu(4)

    def forward(self, x: Any) -> Any:
        skip = x if self.skip is None else self.skip(x)
        return self.relu(self.grid(self.second(self.first(x))) + self.grid(skip))


def resnet(make: Maker) -> nn.Module:
    """The shape of MLPerf Tiny's ResNet-8: three residual blocks, two of them downsampling."""
    return nn.Sequential(
        make.signed(8),
        make.block(qnn.QuantConv2d, 1, 6, 3, padding=1),
        Residual(make, 6, 6, 1),
        Residual(make, 6, 8, 2),
        Residual(make, 8, 12, 2),
        nn.AdaptiveAvgPool2d(1),
        make.unsigned(8),
        nn.Flatten(),
        make.head(12),
    )


def temporal(make: Maker) -> nn.Module:
    """1-D convolutions over the rows of an image as channels."""
    return nn.Sequential(
        make.signed(8),
        make.block(qnn.QuantConv1d, 8, 12, 3, padding=1),
        make.block(qnn.QuantConv1d, 12, 12, 3, padding=1, groups=12),
        make.block(qnn.QuantConv1d, 12, 8, 1),
        nn.Flatten(),
        make.head(64),
    )


# With the shape of one sample.
NETS: dict[str, tuple[Callable[[Maker], nn.Module], tuple[int, ...]]] = {
    "mlp": (mlp, (64,)),
    "cnv": (cnv, (1, 8, 8)),
    "mobilenet": (mobilenet, (1, 8, 8)),
    "resnet": (resnet, (1, 8, 8)),
    "temporal": (temporal, (8, 8)),
}


def digits(name: str) -> tuple[Tensor, Tensor]:
    """Images [N, *shape] in [0, 1] as a net takes them, and labels [N]."""
    data: Any = load_digits()
    images = torch.tensor(data.images, dtype=torch.float32).reshape(-1, *NETS[name][1])
    return images / 16, torch.tensor(data.target)


def build(name: str, style: Style, steps: int = 40) -> tuple[nn.Module, dict[str, int]]:
    """A trained and calibrated net in evaluation mode, and the accumulator width of each layer."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make = Maker(style)
        model = NETS[name][0](make)
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                signs = torch.randint(0, 2, module.weight.shape) * 2 - 1
                module.weight.data.uniform_(0.5, 1.5).mul_(signs)
                module.bias.data.normal_(0, 0.3)
        train(model, *digits(name), steps)
    names = [n for n, m in model.named_modules() if hasattr(m, "weight_quant")]
    return model, dict(zip(names, make.accumulators, strict=True))


def train(model: nn.Module, images: Tensor, labels: Tensor, steps: int) -> None:
    """A few steps of quantization-aware training, in plain torch."""
    with torch.no_grad(), calibration_mode(model.train()):
        model(images[:256])
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(steps):
        picked = torch.randint(0, len(labels), (64,))
        loss = F.cross_entropy(model.train()(images[picked]), labels[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
