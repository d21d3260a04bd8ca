"""The two nets.

The classifier has depthwise-separable convolutions, as the small Xception of FLAME's authors, and
ReLU behind each, so that FINN builds every layer; it has no residual branches. The U-Net has two
levels, ReLU, batch norms that are folded, strides instead of pooling, nearest upsampling and
concatenation.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from brevitas_axe.applications.quickstart import convolution


class Classifier(nn.Module):
    """[N, 3, S, S] → scores of no fire and fire, [N, 2]."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(3, channels, stride=2),
            *_separable(channels, 2 * channels, 1),
            *_separable(2 * channels, 2 * channels, 2),
            *_separable(2 * channels, 4 * channels, 2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.pool(self.features(x)).flatten(1))


class UNet(nn.Module):
    """[N, 3, S, S] → scores of no fire and fire for every pixel, [N, 2, S, S]."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        one, two, four = channels, 2 * channels, 4 * channels
        self.first = nn.Sequential(convolution(3, one), convolution(one, one))
        self.second = nn.Sequential(convolution(one, two, stride=2), convolution(two, two))
        self.bottom = nn.Sequential(convolution(two, four, stride=2), convolution(four, two))
        self.left_second = nn.Sequential(convolution(four, two), convolution(two, one))
        self.left_first = convolution(two, one)
        self.up = nn.Upsample(scale_factor=2)
        self.head = nn.Conv2d(one, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(x)
        second = self.second(first)
        below = self.up(self.bottom(second))
        below = self.up(self.left_second(torch.cat([below, second], 1)))
        return self.head(self.left_first(torch.cat([below, first], 1)))


NETS: dict[str, Callable[[], nn.Module]] = {"classifier": Classifier, "unet": UNet}


def _separable(inputs: int, outputs: int, stride: int) -> tuple[nn.Module, nn.Module]:
    depthwise = convolution(inputs, inputs, stride=stride, groups=inputs)
    return depthwise, convolution(inputs, outputs, kernel=1)
