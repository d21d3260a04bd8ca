"""A float net with everything that a transform may meet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

CHANNELS = 12


class RMSNorm(nn.Module):
    """As transformers write it: a weight and no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)


class Net(nn.Module):
    """Convolution and batch norm, attention with a value path, a gated layer, a residual sum."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.batch_norm = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.norm1 = nn.LayerNorm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)
        self.norm2 = RMSNorm(channels)
        self.up = nn.Linear(channels, 2 * channels)
        self.down = nn.Linear(2 * channels, channels)
        self.norm3 = nn.LayerNorm(channels)
        self.post = nn.Linear(channels, channels)
        self.head = nn.Linear(channels, 5)

    def forward(self, image: Tensor) -> Tensor:
        x = self.batch_norm(self.conv(image))
        x = self.point(torch.relu(self.conv2(x)))
        x = x.flatten(2).transpose(1, 2)
        y = self.norm1(x)
        scores = self.query(y) @ self.key(y).transpose(1, 2)
        x = x + self.out(torch.softmax(scores, -1) @ self.value(y))
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm2(x))))
        x = self.norm3(x)  # the residual sum reads this norm as well
        return self.head(x + self.post(x)).mean(1)


def net(outliers: float = 8.0) -> Net:
    """In evaluation mode, with norms that have learned something and a few large channels."""
    generator = torch.Generator().manual_seed(3)
    made = Net().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
        for norm in (made.batch_norm, made.norm1, made.norm2, made.norm3):
            norm.weight.add_(1)
            norm.weight[2] *= outliers
            if getattr(norm, "bias", None) is not None:
                norm.bias[5] += outliers / 2
        made.batch_norm.running_mean.normal_(generator=generator)
        made.batch_norm.running_var.uniform_(0.5, 2, generator=generator)
    return made


def images(count: int = 2) -> list[Tensor]:
    """Batches of random images."""
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(3, 3, 5, 5, generator=generator) for _ in range(count)]
