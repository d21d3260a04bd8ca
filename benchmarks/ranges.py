"""Ranges of activations and weights by every method, on a trained ResNet-32 or vision transformer.

    python benchmarks/ranges.py [--model resnet32 | vit] [--quick] [--seeds 3] [--images 64]

All layers are quantized, first and last included; `--images` training images calibrate, others for
each seed, and 2,500 others judge. For each method: the squared error of the logits on the
calibration images after the solve, and the accuracy.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from typing import Any

import torch
from arms import solver_fingerprint
from plain_quantize import CODE, NETS, accuracy
from records import add_arguments, print_table, recorded, write_json
from resnet32 import read_images

from brevitas_axe import quantize

METHODS = {
    "as calibrated": "calibrated",
    "max": "max",
    "percentile": "percentile",
    "kl": "kl",
    "kl, weights too": "kl:weights=true",
    "mse": "mse",
    "mse, weights too": "mse:weights=true",
    "lapq, activations alone": "lapq:weights=false,grid=100,evaluations={evaluations}",
    "lapq": "lapq:grid=100,evaluations={evaluations}",
}
SOLVERS = {"gptq, fast": {"solver": "gptq", "quality": "fast"}, "qronos, best": {}}


def measured(name: str, widths: dict[str, Any], ranges: str, seed: int, options: Any) -> dict:
    """Calibration error, accuracy and seconds of one call, from the records if they are there."""
    net, judged = NETS[name], 250 if options.quick else 2500

    def run() -> dict:
        images = read_images("train", options.images * (seed + 1))[0][-options.images :]
        model = net.build()
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = quantize(model, [images], ranges=ranges, progress=False, **widths)
        seconds = round(time.perf_counter() - start, 1)
        with torch.no_grad():
            wanted, given = net.logits(model(images)), net.logits(result.model(images))
        return {
            "loss": float((wanted - given).square().mean()),
            "accuracy": accuracy(net, result.model, *read_images("val", judged)),
            "seconds": seconds,
            "proven": result.certificate.ok,
        }

    key = {"model": name, "widths": widths, "ranges": ranges, "seed": seed, "judged": judged}
    key |= {"images": options.images, "code": solver_fingerprint(CODE)}
    return recorded("ranges", key, run)


def main() -> None:
    """Measures every row and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=NETS, default="resnet32")
    parser.add_argument("--seeds", type=int, default=3, help="sets of calibration images")
    parser.add_argument("--images", type=int, default=64, help="that calibrate")
    parser.add_argument("--evaluations", type=int, default=500, help="losses that Powell may ask")
    parser.add_argument("--bits", nargs="+", default=["4,4", "3,3"], help="WEIGHT,INPUT")
    parser.add_argument("--accumulator", type=int, help="instead of no limit")
    parser.add_argument("--solvers", nargs="+", choices=SOLVERS, default=list(SOLVERS))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.quick:
        arguments.images, arguments.seeds, arguments.evaluations = 16, 1, 20
    rows = []
    for bits in arguments.bits:
        weight, inputs = map(int, bits.split(","))
        for solver in arguments.solvers:
            widths = {"weight_bit_width": weight, "input_bit_width": inputs}
            widths |= {"accumulator_bit_width": arguments.accumulator, **SOLVERS[solver]}
            for method in arguments.methods:
                ranges = METHODS[method].format(evaluations=arguments.evaluations)
                found = [
                    measured(arguments.model, widths, ranges, seed, arguments)
                    for seed in range(arguments.seeds)
                ]
                values = [100 * each["accuracy"] for each in found]
                row = {
                    "widths": f"W{weight}A{inputs}",
                    "solver": solver,
                    "ranges": method,
                    "calibration loss": statistics.mean(each["loss"] for each in found),
                    "accuracy": statistics.mean(values),
                    "error": statistics.stdev(values) / len(values) ** 0.5 if values[1:] else None,
                    "proven": all(each["proven"] for each in found),
                    "seconds": statistics.mean(each["seconds"] for each in found),
                }
                print(row, flush=True)
                rows.append(row)
    print_table(f"{arguments.model}: ranges, P = {arguments.accumulator}", rows)
    write_json(arguments.output, {"benchmark": "ranges", "rows": rows})


if __name__ == "__main__":
    main()
