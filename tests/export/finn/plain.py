"""Ordinary PyTorch CNNs, as people write them who never heard of FINN."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def block(inputs: int, outputs: int, stride: int = 1, relu: bool = True) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU() if relu else nn.Identity())


class Residual(nn.Module):
    """relu(f(x) + x), the second term through a layer of its own where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.first = block(inputs, outputs, stride)
        self.second = block(outputs, outputs, relu=False)
        self.skip = nn.Conv2d(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(self.first(x)) + self.skip(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(block(1, 6), Residual(6, 6), Residual(6, 8, 2))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.pool(self.body(x)), 1))


def vgg() -> nn.Module:
    return nn.Sequential(
        *(block(1, 6), block(6, 6), nn.MaxPool2d(2)),
        *(block(6, 8), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout()),
        *(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10)),
    )


def windows() -> nn.Module:
    """LeNet's averages over windows, and its layers with bias but no batch norm."""
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2)),
        *(nn.Conv2d(6, 8, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 10)),
    )


NETS = {"residual": ResNet, "vgg": vgg, "windows": windows}


def trained(name: str) -> nn.Module:
    """A net whose batch norms have seen data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = NETS[name]()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.data.uniform_(0.5, 1.5)
                module.bias.data.normal_(0, 0.3)
        with torch.no_grad():
            model.train()(images(64))
    return model.eval()


def images(count: int) -> Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
