"""Learned rounding with one choice varied at a time, on a trained ResNet-32.

    python benchmarks/learned_rounding.py [--quick] [--rows ROW ...] [--images 64] [--steps 100]

The basic row learns the rounding of blocks by Adam from squared errors of their outputs, from the
integers of the solver `gptq`. Every other row changes one thing: the images (subset), whether they
are flipped and shifted as well (augmentation), the activations that stay float at random (drop),
the loss, the scope, the variable, the optimizer, the start, or which layers are solved at all
(weights of the last stage alone). All layers are quantized; no row sees a label. Printed are the
loss of the whole model's logits on the calibration images, at the start and as kept, the squared
error of the logits on images that calibrated nothing, and the accuracy on these.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from arms import solver_fingerprint
from plain_quantize import CODE, NETS, accuracy
from records import add_arguments, print_table, recorded, write_json
from resnet32 import read_images
from torch import Tensor

from brevitas_axe import Recipe, quantize

BASIC = "learned_rounding:scope=block,start=gptq"
# Row → (what is varied, the solver).
ROWS = {
    "nearest, no learning": ("start", "learned_rounding:scope=layer,strength=0,rate=0,steps=1"),
    "gptq, no learning": ("start", "gptq"),
    "basic": ("–", BASIC),
    "half of the images": ("subset", BASIC),
    "flipped and shifted too": ("augmentation", BASIC),
    "half of the activations float": ("drop", f"{BASIC},drop=0.5"),
    "Fisher information": ("loss", f"{BASIC},loss=fisher"),
    "divergence": ("loss", f"{BASIC.replace('block', 'model')},loss=kl"),
    "scope layer": ("scope", "learned_rounding:scope=layer,start=gptq"),
    "scope model": ("scope", BASIC.replace("block", "model")),
    "scale alone": ("variable", f"{BASIC},variable=scale,rate=0.001"),
    "rounding and scale": ("variable", f"{BASIC},variable=both,rate=0.01"),
    "signs of gradients": ("optimizer", f"{BASIC},optimizer=sign"),
    "gradient descent": ("optimizer", f"{BASIC},optimizer=sgd,rate=10"),
    "from nearest": ("start", BASIC.replace("gptq", "nearest")),
    "last stage alone": ("weights", BASIC),
}


def calibration(row: str, count: int) -> list[Tensor]:
    """Batches of at most 32 images."""
    images = read_images("train", count // 2 if row == "half of the images" else count)[0]
    if row == "flipped and shifted too":
        images = torch.cat([images, images.flip(-1), images.roll((1, 1), (-2, -1))])
    return [*images.split(32)]


def measured(row: str, solver: str, options: argparse.Namespace) -> dict:
    """Losses, accuracy and seconds of one row, from the records if they are there."""
    net = NETS["resnet32"]
    weight, inputs = map(int, options.bits.split(","))

    def run() -> dict:
        model, batches = net.build(), calibration(row, options.images)
        spec = solver
        if "learned" in solver and "steps" not in solver:
            spec = f"{solver},steps={options.steps}"
        # Layers with 8 bits are left as rounding to nearest has them, nearly float.
        rules = {"layer1.*": {"weight": 8}, "layer2.*": {"weight": 8}}
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = quantize(
                model,
                batches,
                recipe=Recipe(rules=rules) if row == "last stage alone" else None,
                weight_bit_width=weight,
                input_bit_width=inputs,
                accumulator_bit_width=options.accumulator,
                solver=spec,
                quality="fast",
                progress=False,
            )
        images, labels = read_images("val", options.judged)
        seconds = time.perf_counter() - start
        with torch.no_grad():
            held = sum(
                float((net.logits(result.model(x)) - net.logits(model(x))).square().sum())
                for x in images.split(250)
            )
        last = result.learned[-1] if result.learned else {"start": None, "kept": None}
        return {
            "calibration, start": last["start"],
            "calibration, kept": last["kept"],
            "held out": held / images.shape[0] / 10,
            "accuracy": 100 * accuracy(net, result.model, images, labels),
            "proven": result.certificate.ok,
            "seconds": round(seconds, 1),
        }

    key = {"row": row, "solver": solver, **vars(options), "code": solver_fingerprint(CODE)}
    for unused in ("rows", "output", "threads"):
        key.pop(unused)
    return recorded("learned_rounding", key, run)


def main() -> None:
    """Measures every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--images", type=int, default=64, help="that calibrate")
    parser.add_argument("--judged", type=int, default=2500, help="images that judge")
    parser.add_argument("--steps", type=int, default=100, help="of the optimizer, for each block")
    parser.add_argument("--bits", default="4,4", help="WEIGHT,INPUT")
    parser.add_argument("--accumulator", type=int, help="instead of no limit")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.images, arguments.judged, arguments.steps = 16, 250, 5
    rows = []
    for row in arguments.rows:
        varied, solver = ROWS[row]
        rows.append({"row": row, "varied": varied, **measured(row, solver, arguments)})
        print(rows[-1], flush=True)
    title = f"ResNet-32, W{arguments.bits.replace(',', 'A')}, P = {arguments.accumulator}"
    print_table(f"{title}: one choice at a time", rows)
    write_json(arguments.output, {"benchmark": "learned_rounding", "rows": rows})


if __name__ == "__main__":
    main()
