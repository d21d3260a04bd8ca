"""Small nets of every kind that walks from calibration to the emulator, with data and labels."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe import prepare_for_finn

CLASSES = 3


class Residual(nn.Module):
    """An identity shortcut, whose quantizers share a scale."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.norm(self.inner(x)) + x)
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Inverted(nn.Module):
    """An inverted residual of MobileNetV2: expansion, depthwise layer, linear bottleneck."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        wide = 2 * channels
        self.layers = nn.Sequential(
            nn.Conv2d(channels, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU6(),
            nn.Conv2d(wide, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class UNet(nn.Module):
    """Down, up, and a concatenation with what was there before."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = F.relu(self.down(x))
        x = F.relu(self.deep(F.max_pool2d(skip, 2)))
        return self.out(torch.cat([F.relu(self.up(x)), skip], 1))


class Untraceable(nn.Module):
    """It takes tensors alone, so that it is not traced and keeps its own class."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(10, 8), nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("give a tensor")
        return self.head(F.relu(self.first(x)))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 5, 3, padding=1),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(80, CLASSES),
    )


def mobilenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU6(),
        Inverted(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    )


def sequence() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(2, 5, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(50, CLASSES)
    )


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, CLASSES))


def qat() -> nn.Module:
    """A Brevitas model as its users write them, calibrated."""
    relu = {"act_quant": Uint8ActPerTensorFloat, "bit_width": 6, "return_quant_tensor": True}
    weights = {"weight_quant": Int8WeightPerTensorFloat, "weight_bit_width": 4}
    model = nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantLinear(10, 12, bias=True, **weights),
        qnn.QuantReLU(**relu),
        qnn.QuantLinear(12, CLASSES, bias=True, **weights),
    )
    model.train()
    for _ in range(3):
        model(data(qat))
    return model.eval()


def prepared() -> nn.Module:
    return prepare_for_finn(seeded(cnn), [data(cnn)])


Build = Callable[[], nn.Module]
BUILDERS: tuple[Build, ...] = (
    cnn, Residual, mobilenet, UNet, sequence, mlp, Untraceable, qat, prepared,
)  # fmt: skip
_SHAPES = {sequence: (2, 10), mlp: (10,), Untraceable: (10,), qat: (10,)}


def seeded(build: Build) -> nn.Module:
    """The same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build()


def data(build: Build, count: int = 12) -> Tensor:
    """Inputs of a net, the same each time."""
    generator = torch.Generator().manual_seed(1)
    return torch.rand(count, *_SHAPES.get(build, (3, 8, 8)), generator=generator)


def labels(build: Build, count: int = 12) -> Tensor:
    """Classes that there are."""
    shape = (count, 8, 8) if build is UNet else (count,)
    return torch.randint(CLASSES, shape, generator=torch.Generator().manual_seed(2))
