"""A ResNet-8 for CIFAR images, its images in three parts, and its training in float.

The blocks are those of `resnet32`, one per stage instead of five. Of the 10,000 training images the
last 1,000 are held out: nothing trains on them, every choice is made on them. The 2,500 test images
only judge.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from records import CACHE
from resnet32 import ResidualBlock, accuracy, read_images
from torch import Tensor, nn

HELD_OUT = 1000
BATCH = 64


class ResNet8(nn.Module):
    """A convolution, three residual blocks of 16, 32 and 64 channels, and a classifier."""

    def __init__(self, widths: tuple[int, ...] = (16, 16, 32, 64)) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.blocks = nn.Sequential(*(ResidualBlock(a, b) for a, b in pairwise(widths)))
        self.linear = nn.Linear(widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [batch, 3, 32, 32] to logits [batch, 10]."""
        x = self.blocks(F.relu(self.bn1(self.conv1(x))))
        return self.linear(x.mean((2, 3)))


@dataclass(frozen=True)
class Images:
    """Normalized images with their labels, in three parts that share none."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def calibration(self, count: int) -> list[Tensor]:
        """Batches of the first training images, without labels."""
        return list(self.train[0][:count].split(250))


@cache
def read(train: int, judged: int | None) -> Images:
    """The first `train` training images, and the first `judged` of each other part."""
    images, labels = read_images("train", 10_000)
    test = read_images("val", 2500)
    return Images(
        (images[:-HELD_OUT][:train], labels[:-HELD_OUT][:train]),
        (images[-HELD_OUT:][:judged], labels[-HELD_OUT:][:judged]),
        (test[0][:judged], test[1][:judged]),
    )


class Augmented:
    """Batches (images, labels), shuffled and mirrored anew in every epoch; each batch is shifted.

    Args:
        images: [n, 3, 32, 32].
        labels: [n].
        seed: two loaders with the same seed give the same batches.
    """

    def __init__(self, images: Tensor, labels: Tensor, seed: int) -> None:
        self.images, self.labels = images, labels
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.images) // BATCH

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.images), generator=self.generator)
        for batch in order.split(BATCH)[: len(self)]:
            x = self.images[batch]
            mirrored = torch.rand(BATCH, 1, 1, 1, generator=self.generator) < 0.5
            x = F.pad(torch.where(mirrored, x.flip(3), x), (4, 4, 4, 4), mode="reflect")
            row, column = torch.randint(0, 9, (2,), generator=self.generator).tolist()
            yield x[:, :, row : row + 32, column : column + 32], self.labels[batch]


def trained(images: Images, epochs: int) -> ResNet8:
    """The float network in evaluation mode, from the cache where it is there.

    SGD with momentum and a one-cycle schedule, seed 0.
    """
    path = CACHE / f"resnet8_{epochs}_{len(images.train[0])}.pt"
    torch.manual_seed(0)
    model = ResNet8()
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    loader = Augmented(*images.train, seed=0)
    optimizer = torch.optim.SGD(
        model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, nesterov=True
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.2, epochs * len(loader), pct_start=0.2
    )
    for epoch in range(epochs):
        model.train()
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
        score = accuracy(model.eval(), *images.held_out)
        print(f"float, epoch {epoch + 1} of {epochs}: held out {score:.3f}", flush=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model
