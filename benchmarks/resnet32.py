"""A trained ResNet-32 on CIFAR-10 under P-bit accumulators, P = 8 .. 18.

    python benchmarks/resnet32.py [--quick] [--owners none fast best] [--output FILE] [--plot PNG]
    python benchmarks/resnet32.py --time

W-bit weights, unsigned A-bit inputs, 250 training images to calibrate, 2,500 to judge. The first
convolution and the classifier stay in float, in every arm alike. The published curve is drawn by
our `fast` quality, which can part from Brevitas's integers at a float32 tie and from there on;
Brevitas's own code, minutes a point, is run at the widths of REFERENCE, its rows stand beside.
`--time` runs whole quantizations in a process each and prints seconds and peak memory.

Weights: akamaster/pytorch_resnet_cifar10 (BSD-2-Clause); images: CIFAR-10 (Krizhevsky 2009).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from arms import Experiment, Setting
from comparison import add_arguments, compare
from conv_quantizers import Join, folded, quantized
from records import DATA, drawing, print_table, write_json
from safetensors.torch import load_file
from torch import Tensor, nn

REFERENCE = (12,)
TIMED = ("brevitas a2gpfq", "fast gpfq", "brevitas a2gptq", "fast gptq", "best qronos")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut that has no weights.

    Where the block halves the image the shortcut takes every second pixel and pads the new
    channels with zeros, half of them before and half after.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.stride, self.padding = (2, (outputs - inputs) // 2) if inputs != outputs else (1, 0)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.join = Join()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, size, size] to [batch, outputs, size / stride, size / stride]."""
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        shortcut = F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(self.join(y) + self.join(shortcut))


class ResNet32(nn.Module):
    """Three stages of five residual blocks, 16, 32 and 64 channels wide."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        for stage, (inputs, outputs) in enumerate([(16, 16), (16, 32), (32, 64)], start=1):
            widths = [inputs] + [outputs] * 5
            blocks = (ResidualBlock(a, b) for a, b in pairwise(widths))
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Normalized images [batch, 3, 32, 32] to logits [batch, 10]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def read_images(part: str, count: int) -> tuple[Tensor, Tensor]:
    """The first `count` images, normalized, and labels of the "train" or the "val" part."""
    with np.load(DATA / "cifar10_jpeg_subset.npz") as arrays:
        images, labels = arrays[f"{part}_images"][:count], arrays[f"{part}_labels"][:count]
    mean, deviation = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    images = (torch.from_numpy(images) / 255 - mean) / deviation
    return images.permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images whose largest logit is at the label."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(250)])
    return (predicted == labels).float().mean().item()


def experiment(calibration: int, validation: int) -> Experiment:
    """The folded network with its calibration images and its judge."""
    images, _ = read_images("train", calibration)
    judged = read_images("val", validation)
    model = ResNet32()
    model.load_state_dict(load_file(DATA / "resnet32_cifar10.safetensors"))
    model = folded(model)
    return Experiment(
        name="resnet32",
        metric="accuracy",
        lower_is_better=False,
        model=model,
        quantize=partial(quantized, model, in_float=["conv1", "linear"]),
        batches=images.split(250),
        evaluate=lambda net: accuracy(net, *judged),
        content={"calibration": calibration, "validation": validation},
    )


def draw(content: dict, path: Path) -> None:
    """Accuracy against P: equal bits, each side's best solver, and each at its best widths."""
    best: dict[tuple[str, str], dict[int, float]] = {}
    for row in content["rows"]:
        owner = {"fast": "published", "best": "ours"}.get(row["arm"].split()[0], row["arm"])
        if row["accumulator_bits"] is not None and row["accuracy"] is not None:
            points = best.setdefault((owner, f"W{row['weight_bits']}A{row['input_bits']}"), {})
            bits = row["accumulator_bits"]
            points[bits] = max(points.get(bits, 0.0), row["accuracy"])
    for row in content["best_widths"]:
        owner = "ours" if row["side"].startswith("ours") else "published"
        best.setdefault((owner, "best W/A"), {})[row["accumulator_bits"]] = row["accuracy"]
    colours = {"W4A4": "C0", "W4A8": "C1", "best W/A": "C2"}
    labels = ("ResNet-32, CIFAR-10", "accumulator bits P", "top-1 accuracy, %")
    with drawing(path, *labels, legend_size=7) as axes:
        for (owner, widths), accuracies in best.items():
            points = {bits: 100 * accuracy for bits, accuracy in accuracies.items()}
            other = "+" if owner.endswith("gpfq") else "x"
            style = {"ours": "o-", "published": "s--"}.get(owner, other)
            bold = 2.5 if widths == "best W/A" else 1.2
            label = f"{owner}, {widths}"
            axes.plot(*zip(*sorted(points.items()), strict=True), style, color=colours[widths],
                      linewidth=bold, label=label)  # fmt: skip


def run_once(arm: str, images: int) -> dict:
    """Seconds of one whole quantization and the peak memory of this process."""
    _, seconds = experiment(images, 1).solved(Setting(arm, 4, 8, accumulator_bits=16))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"arm": arm, "seconds": round(seconds, 2), "peak_mib": round(peak)}


def time_arms(arms: list[str], images: int, threads: int) -> list[dict]:
    """`run_once` in a fresh process for each arm, with ratios to the first one."""
    rows = []
    for arm in arms:
        command = [sys.executable, __file__, "--once", arm, "--images", str(images)]
        done = subprocess.run(
            [*command, "--threads", str(threads)], check=True, stdout=subprocess.PIPE, text=True
        )
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    for row in rows:
        row["speed-up"] = rows[0]["seconds"] / row["seconds"]
        row["memory ratio"] = row["peak_mib"] / rows[0]["peak_mib"]
    return rows


def main() -> None:
    """Runs every row, or the timing, and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--accumulators", type=int, nargs="+", default=[18, 16, 14, 12, 10, 8])
    parser.add_argument("--plot", type=Path, help="PNG file for the curves")
    parser.add_argument("--time", action="store_true", help="time whole runs instead")
    parser.add_argument("--images", type=int, help="for calibration; 250, or 1000 to time")
    parser.add_argument("--once", help=argparse.SUPPRESS)
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.once:
        print(json.dumps(run_once(arguments.once, arguments.images)))
        return
    if arguments.time:
        arms = [arm for arm in TIMED if arm.split()[0] in arguments.owners]
        images = 100 if arguments.quick else arguments.images or 1000
        rows = time_arms(arms, images, arguments.threads)
        print_table("ResNet-32, W4A8, P=16: one whole quantization", rows)
        write_json(arguments.output, {"benchmark": "resnet32 --time", "rows": rows})
        return
    small = arguments.quick
    content = compare(
        experiment(100 if small else arguments.images or 250, 250 if small else 2500),
        arguments,
        bits=[(4, 4), (4, 8)],
        accumulators=[12] if small else arguments.accumulators,
        tiles=[None],
        sweep=[(2, 3), (3, 3), (3, 4), (3, 6), (4, 6)],
        solvers=("gpfq", "gptq", "qronos") if small else ("qronos",),
        reference=() if small else REFERENCE,
    )
    if arguments.plot:
        draw(content, arguments.plot)


if __name__ == "__main__":
    main()
