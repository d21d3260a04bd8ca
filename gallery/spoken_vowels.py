"""A net as for keyword spotting that tells nine speakers apart by a spoken vowel, for FINN.

Real speech: 640 utterances of Japanese vowels as 12 cepstral coefficients over time (Kudo, Toyama,
Shimbo 1999; UCI, CC BY 4.0), which the package aeon brings along: `pip install --no-deps aeon`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn
from whole_way import whole_way

# No utterance is longer than 29 frames.
COEFFICIENTS, FRAMES = 12, 32
EPOCHS = 60


def utterances(part: str) -> tuple[Tensor, Tensor]:
    """Cepstra as images, [N, 1, 12, 32], zeros behind their end, and the speakers, [N]."""
    found = importlib.util.find_spec("aeon")  # nothing of it is imported
    if found is None or found.origin is None:
        raise SystemExit("the utterances are in the package aeon: pip install --no-deps aeon")
    file = Path(found.origin).parent / f"datasets/data/JapaneseVowels/JapaneseVowels_{part}.ts"
    lines = file.read_text(encoding="utf-8").partition("@data\n")[2].splitlines()
    images = torch.zeros(len(lines), 1, COEFFICIENTS, FRAMES)
    for image, line in zip(images, lines, strict=True):
        for row, text in zip(image[0], line.split(":")[:-1], strict=True):
            values = torch.tensor([float(value) for value in text.split(",")])
            row[: len(values)] = values
    return images, torch.tensor([int(line.rpartition(":")[2]) - 1 for line in lines])


TRAINING, SPEAKERS = utterances("TRAIN")
TEST, TEST_SPEAKERS = utterances("TEST")


def separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    """A depthwise and a pointwise convolution, as in DS-CNN."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
    pairs = ((depthwise, inputs), (pointwise, outputs))
    return [m for conv, width in pairs for m in (conv, nn.BatchNorm2d(width), nn.ReLU())]


def build():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU()),
            *separable(24, 32, stride=2),
            *separable(32, 48, stride=2),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 9)),
        )
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            for picked in torch.randperm(len(TRAINING)).split(32):
                shift = int(torch.randint(0, 4, ()))
                x = TRAINING[picked].roll(shift, -1) + 0.05 * torch.randn_like(TRAINING[picked])
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), SPEAKERS[picked]).backward()
                optimizer.step()
            schedule.step()
    return model.eval()


def data():
    return [TRAINING]


def accuracy(model):
    return (model(TEST).argmax(1) == TEST_SPEAKERS).float().mean()


if __name__ == "__main__":
    finn = "--weight-bits 4 --input-bits 4 --model-input-bits 6"
    whole_way(__file__, "DS-CNN, speakers of a vowel", "--accumulator-bits 10", finn=finn)
