"""How the time of export, check, certify and emulate grows with the number of layers.

A residual net of 8 channels, prepared and quantized without a solve, at growing depth. The CPU time
of each step, the median of several runs, is divided by that at half the depth: 2 where it grows
linearly.

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


def times(layers: int, repeat: int = 1) -> tuple[int, dict[str, float]]:
    """Number of nodes of the file, and CPU seconds of each step, the median of several runs."""
    images, found = torch.randn(4, 3, 8, 8), {}
    model = prepare_for_finn(net(layers), [images], weight_bit_width=4, input_bit_width=4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        steps = {
            "export": lambda: brevitas_axe.export_qonnx(model, images[:1], path, target="qonnx"),
            "check": lambda: brevitas_axe.check_finn(path),
            "certify": lambda: brevitas_axe.certify_file(path),
            "emulate": lambda: emulate(path, images[:1].numpy()),
        }
        proto = None
        for name, step in steps.items():
            seconds = []
            for _ in range(repeat):
                start = time.process_time()
                result = step()
                seconds.append(time.process_time() - start)
            found[name] = statistics.median(seconds)
            proto = result if name == "export" else proto
    return len(proto.graph.node), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[25, 50, 100, 200])
    parser.add_argument("--repeat", type=int, default=3, help="runs of each step")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    times(8)  # imports and caches
    print(f"{'layers':>6} {'nodes':>6}", *(f"{n:>9} (ratio)" for n in STEPS))
    last: dict[str, float] = {}
    for layers in options.layers:
        nodes, found = times(layers, options.repeat)
        columns = [
            f"{found[n]:8.2f}s ({found[n] / last[n]:5.2f})"
            if n in last
            else f"{found[n]:8.2f}s        "
            for n in STEPS
        ]
        print(f"{layers:6} {nodes:6}", *columns, flush=True)
        last = found


STEPS = ("export", "check", "certify", "emulate")

if __name__ == "__main__":
    main()
