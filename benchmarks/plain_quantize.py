"""What one plain call of `quantize` gives, and what it gives with widths="auto".

    python benchmarks/plain_quantize.py [--model resnet32 | vit] [--quick] [--only ARM ...]

`resnet32` is the trained ResNet-32 of resnet32.py with every layer quantized, first and last
included, and nothing done by hand; `vit` is a trained vision transformer. Calibration takes 250
training images, others for each seed; 2,500 others judge. Rows: W4A4 with ranges fitted (the
default) and as Brevitas's percentile leaves them, without a limit and at narrow accumulators;
widths chosen by themselves, under the same accumulators or as many bit operations as W4A4; and
every pair of two to four bits for all layers at the narrowest accumulator. `--reference` adds the
row of resnet32.py, which leaves the first convolution and the classifier in float.

The error of an accuracy near 80 % on 2,500 images is 0.8 points; two rows that see the same images
differ by less.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from arms import Setting, solver_fingerprint
from records import DATA, add_arguments, print_table, recorded, write_json
from resnet32 import ResNet32, experiment, read_images
from safetensors.torch import load_file
from torch import Tensor, nn

from brevitas_axe import quantize

CODE = ("methods", "model", "run", "recipe.py", "accumulator.py")
KINDS = ("plain", "percentile", "auto", "uniform")
# The row of resnet32.py.
OWN = Setting("best qronos", 4, 4, 12, act_order=True)
UNIFORM = tuple(product((2, 3, 4), (2, 3, 4)))
# As many images at a time as calibrate.
CALIBRATION = 250
Row = tuple[str, int | None, dict[str, Any]]


@dataclass(frozen=True)
class Net:
    """A trained model, the accumulators of its rows, widest first, and how it gives logits."""

    build: Callable[[], nn.Module]
    accumulators: tuple[int | None, ...]
    logits: Callable[[Any], Tensor]


def resnet32() -> nn.Module:
    """The trained ResNet-32."""
    model = ResNet32()
    model.load_state_dict(load_file(DATA / "resnet32_cifar10.safetensors"))
    return model.eval()


def vit() -> nn.Module:
    """The trained vision transformer."""
    from transformers import ViTForImageClassification

    return ViTForImageClassification.from_pretrained(DATA / "vit_cifar10").float().eval()


NETS = {
    "resnet32": Net(resnet32, (None, 12, 10), lambda output: output),
    "vit": Net(vit, (14,), lambda output: output.logits),
}


@torch.no_grad()
def accuracy(net: Net, model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images whose largest logit is at the label."""
    predicted = torch.cat([net.logits(model(x)).argmax(1) for x in images.split(CALIBRATION)])
    return (predicted == labels).float().mean().item()


def rows_of(kinds: list[str], accumulators: Sequence[int | None]) -> Iterator[Row]:
    """Name, accumulator and keywords of `quantize` for every row."""
    four = {"weight_bit_width": 4, "input_bit_width": 4}
    for kind, bits in product(kinds, accumulators):
        if kind == "plain":
            yield "W4A4", bits, four
        elif kind == "percentile":
            yield "W4A4, ranges as calibrated", bits, {**four, "ranges": "calibrated"}
        elif kind == "auto":
            budget = {"budget": {"bops": "100%"}} if bits is None else {}
            yield "auto", bits, {"widths": "auto", **budget}
    if "uniform" in kinds:
        for weight, inputs in UNIFORM:
            keywords = {"weight_bit_width": weight, "input_bit_width": inputs}
            yield f"uniform W{weight}A{inputs}", accumulators[-1], keywords


def measured(name: str, bits: int | None, keywords: dict, seed: int, few: bool) -> dict:
    """Accuracy and seconds of one call, from the cache if they are there."""
    net, count, judged = NETS[name], 50 if few else CALIBRATION, 250 if few else 2500

    def run() -> dict:
        images = read_images("train", count * (seed + 1))[0][-count:]
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = quantize(
                net.build(), [images], accumulator_bit_width=bits, progress=False, **keywords
            )
        seconds = round(time.perf_counter() - start, 1)
        return {
            "accuracy": accuracy(net, result.model, *read_images("val", judged)),
            "seconds": seconds,
            "proven": result.certificate.ok,
            "tried": [dict(row) for row in result.tried],
            "plan": {n: [p.weight, p.input] for n, p in result.plan.layers.items()},
        }

    key = {"model": name, "bits": bits, "keywords": keywords, "seed": seed, "few": few}
    return recorded("plain_quantize", {**key, "code": solver_fingerprint(CODE)}, run)


def table(name: str, rows: Iterable[Row], seeds: int, few: bool) -> list[dict]:
    """One line per row, means over seeds."""
    lines = []
    for title, bits, keywords in rows:
        found = [measured(name, bits, keywords, seed, few) for seed in range(seeds)]
        values = [100 * each["accuracy"] for each in found]
        line = {
            "row": title,
            "P": bits,
            "accuracy": statistics.mean(values),
            "deviation": statistics.stdev(values) if seeds > 1 else None,
            "proven": all(each["proven"] for each in found),
            "seconds": statistics.mean(each["seconds"] for each in found),
        }
        print(line, *found[0]["tried"], flush=True)
        lines.append(line)
    return lines


def main() -> None:
    """Measures every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NETS, default="resnet32")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), help="rows")
    parser.add_argument("--accumulators", type=int, nargs="+", help="instead of the net's own")
    parser.add_argument("--seeds", type=int, default=1, help="sets of calibration images")
    parser.add_argument("--reference", action="store_true", help="the row of resnet32.py as well")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    net, few = NETS[arguments.model], arguments.quick
    real = accuracy(net, net.build(), *read_images("val", 250 if few else 2500))
    rows = [{"row": "float", "P": None, "accuracy": 100 * real, "deviation": None, "proven": None,
             "seconds": None}]  # fmt: skip
    if arguments.reference:
        own = experiment(CALIBRATION, 2500).measure(OWN)
        rows.append({**rows[0], "row": "resnet32.py, W4A4", "P": 12, "proven": own["certified"],
                     "accuracy": 100 * own["accuracy"], "seconds": own["seconds"]})  # fmt: skip
    wanted = rows_of(arguments.only, arguments.accumulators or net.accumulators)
    rows += table(arguments.model, wanted, arguments.seeds, few)
    print_table(f"{arguments.model}: one plain call", rows)
    write_json(arguments.output, {"benchmark": "plain_quantize", "rows": rows})


if __name__ == "__main__":
    main()
