"""How the time of export, check, certify and emulate grows with the number of layers.

A residual net of 8 channels, prepared and quantized without a solve, at growing depth. All depths
take turns, because the CPU time of the same work changes with what else the machine's cores do. The
ratio is the median, over the turns, of the CPU time of a step divided by that at the depth before:
2 where it grows linearly and the depth is twice.

    python benchmarks/growth.py --layers 25 50 100 200 [--repeat 3]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch import nn

import brevitas_axe
from brevitas_axe.export.finn.prepare import prepare_for_finn
from brevitas_axe.proof.emulator import emulate


class Residual(nn.Module):
    """Two convolutions beside an identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x + self.second(torch.relu(self.first(x))))


def net(layers: int) -> nn.Module:
    """A net of about `layers` dot products."""
    torch.manual_seed(0)
    stem, blocks = nn.Conv2d(3, 8, 3, padding=1), [Residual(8) for _ in range((layers - 2) // 2)]
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(stem, nn.ReLU(), *blocks, *pool, nn.Linear(8, 10)).eval()


class Case:
    """A prepared net and the steps that are timed on it."""

    def __init__(self, layers: int, folder: Path) -> None:
        images = torch.randn(4, 3, 8, 8)
        widths = {"weight_bit_width": 4, "input_bit_width": 4}
        model, path = prepare_for_finn(net(layers), [images], **widths), folder / f"{layers}.onnx"
        self.layers, self.nodes = layers, 0
        self.steps = {
            "export": lambda: brevitas_axe.export_qonnx(model, images[:1], path, target="qonnx"),
            "check": lambda: brevitas_axe.check_finn(path),
            "certify": lambda: brevitas_axe.certify_file(path),
            "emulate": lambda: emulate(path, images[:1].numpy()),
        }

    def turn(self) -> dict[str, float]:
        """CPU seconds of every step."""
        seconds = {}
        for name, step in self.steps.items():
            start = time.process_time()
            result = step()
            seconds[name] = time.process_time() - start
            self.nodes = len(result.graph.node) if name == "export" else self.nodes
        return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--repeat", type=int, default=3, help="turns of all depths")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        Case(8, Path(folder)).turn()  # imports and caches
        cases = [Case(layers, Path(folder)) for layers in options.layers]
        turns = [[case.turn() for case in cases] for _ in range(options.repeat)]
    print(f"{'layers':>6} {'nodes':>6}", *(f"{name:>9} (ratio)" for name in cases[0].steps))
    for i, case in enumerate(cases):
        columns = []
        for name in case.steps:
            seconds = statistics.median(turn[i][name] for turn in turns)
            ratio = statistics.median(turn[i][name] / turn[i - 1][name] for turn in turns)
            columns.append(f"{seconds:8.2f}s " + (f"({ratio:5.2f})" if i else " " * 7))
        print(f"{case.layers:6} {case.nodes:6}", *columns, flush=True)


if __name__ == "__main__":
    main()
