"""What a solve keeps of a net that was trained with its quantizers, by the function it follows.

    python benchmarks/aware_training.py [--bits 2 3 4] [--accumulators none 16 14 12 10]

Three layers on scikit-learn's digits, trained here with Brevitas's quantizers in a few seconds;
1,200 images train, 1,000 of them calibrate, 597 others judge.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch
from brevitas import nn as qnn
from sklearn.datasets import load_digits
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from brevitas_axe import quantize
from brevitas_axe.model.running import float_twin


def net(bits: int) -> nn.Sequential:
    """Two hidden layers of 64, with batch norms; W and A bits, the images at 8."""
    torch.manual_seed(0)
    hidden: list[nn.Module] = []
    for _ in range(2):
        hidden += [
            qnn.QuantLinear(64, 64, bias=False, weight_bit_width=bits),
            nn.BatchNorm1d(64),
            qnn.QuantReLU(bit_width=bits, return_quant_tensor=True),
        ]
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        *hidden,
        qnn.QuantLinear(64, 10, bias=True, weight_bit_width=bits),
    )


def trained(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """The model after 30 epochs, in evaluation mode."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(30):
        for some in torch.arange(len(x)).split(100):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), labels[some]).backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--accumulators", nargs="+", default=["none", "16", "14", "12", "10"])
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    digits = load_digits()
    order = torch.randperm(len(digits.images), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(digits.images, dtype=torch.float32).reshape(-1, 64)[order] / 16
    labels = torch.tensor(digits.target)[order]

    @torch.no_grad()
    def accuracy(model: nn.Module) -> str:
        return f"{100 * float((model(x[1200:]).argmax(1) == labels[1200:]).float().mean()):.1f} %"

    for bits in arguments.bits:
        model = trained(net(bits), x[:1200], labels[:1200])
        print(
            f"W{bits}A{bits}: {accuracy(model)}, without quantizers {accuracy(float_twin(model))}"
        )
        for limit in arguments.accumulators:
            width = None if limit == "none" else int(limit)
            found = {
                function: quantize(
                    model,
                    [x[:1000]],
                    accumulator_bit_width=width,
                    function=function,
                    progress=False,
                )
                for function in (None, "quantized", "float")
            }
            cells = ", ".join(
                f"{function or f'by itself ({result.recipe.function})'} {accuracy(result.model)}"
                for function, result in found.items()
            )
            print(f"  accumulator {limit}: {cells}", flush=True)


if __name__ == "__main__":
    main()
