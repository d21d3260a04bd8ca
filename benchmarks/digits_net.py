"""A small convolutional net on scikit-learn's digits under P-bit accumulators.

    python benchmarks/digits_net.py [--quick] [--owners none brevitas fast best] [--output FILE]

Regular, depthwise, pointwise, grouped and strided convolutions and a residual addition, trained by
this script in about a minute. All layers, first and last too, have W-bit weights, unsigned A-bit
inputs and the same accumulator; accuracy is on 30 % of the images, held out.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
import torch.nn.functional as F
from arms import Experiment
from comparison import add_arguments, compare
from conv_quantizers import Join, folded, quantized
from records import CACHE
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn


class DigitsNet(nn.Module):
    """8x8 images to ten logits through each kind of convolution that FINN runs."""

    def __init__(self) -> None:
        super().__init__()
        shapes = {
            "regular": (1, 16, 3, 1, 1),
            "depthwise": (16, 16, 3, 1, 16),
            "pointwise": (16, 32, 1, 1, 1),
            "grouped": (32, 32, 3, 2, 4),
            "residual": (32, 32, 3, 1, 1),
            "strided": (32, 64, 3, 2, 1),
        }
        for name, (inputs, outputs, kernel, stride, groups) in shapes.items():
            layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
            setattr(self, name, layer)
            setattr(self, f"{name}_norm", nn.BatchNorm2d(outputs))
        self.join, self.head = Join(), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Images [batch, 1, 8, 8] in 0..1 to logits [batch, 10]."""
        x = F.relu(self.regular_norm(self.regular(x)))
        x = F.relu(self.depthwise_norm(self.depthwise(x)))
        x = F.relu(self.pointwise_norm(self.pointwise(x)))
        x = F.relu(self.grouped_norm(self.grouped(x)))
        x = F.relu(self.join(self.residual_norm(self.residual(x))) + self.join(x))
        x = F.relu(self.strided_norm(self.strided(x)))
        return self.head(x.mean((2, 3)))


def read_digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, held-out images, training labels, held-out labels."""
    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(images / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return train_test_split(
        images, torch.tensor(labels), test_size=0.3, random_state=0, stratify=labels
    )


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images whose largest logit is at the label."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(256)])
    return (predicted == labels).float().mean().item()


def train(images: Tensor, labels: Tensor, epochs: int) -> DigitsNet:
    """AdamW with a one-cycle schedule, seed 0, images shifted by up to a pixel."""
    torch.manual_seed(0)
    model = DigitsNet()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    steps = epochs * -(-len(images) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            shift = tuple(torch.randint(-1, 2, (2,)).tolist())
            logits = model(images[rows].roll(shift, (2, 3)))
            optimizer.zero_grad()
            F.cross_entropy(logits, labels[rows]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def load_model(epochs: int) -> DigitsNet:
    """The trained network, from the cache where it is there."""
    path = CACHE / f"digits_net_{epochs}.pt"
    if not path.exists():
        images, _, labels, _ = read_digits()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(train(images, labels, epochs).state_dict(), path)
    model = DigitsNet()
    model.load_state_dict(torch.load(path, weights_only=True))
    return model.eval()


def experiment(epochs: int) -> Experiment:
    """The folded network, calibrated on 512 training images and judged on the held-out ones."""
    training, held_out, _, labels = read_digits()
    model = folded(load_model(epochs))
    return Experiment(
        name="digits_net",
        metric="accuracy",
        lower_is_better=False,
        model=model,
        quantize=partial(quantized, model),
        batches=training[:512].split(128),
        evaluate=lambda net: accuracy(net, held_out, labels),
        content={"calibration": 512, "validation": len(labels)},
    )


def main() -> None:
    """Runs every row and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    compare(
        experiment(epochs=10 if arguments.quick else 40),
        arguments,
        bits=[(4, 8)],
        accumulators=[14] if arguments.quick else [16, 14, 12, 10],
        tiles=[None],
        sweep=[(w, a) for w in (2, 3, 4) for a in (4, 6, 8)],
    )


if __name__ == "__main__":
    main()
