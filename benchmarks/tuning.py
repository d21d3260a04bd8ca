"""`tune` on the trained ResNet-32, given nothing but 12 bits; judged on images that it never saw.

    python benchmarks/tuning.py --minutes 60 --state DIR

Calibrates on the 250 images of the other tables. What chooses is how near the outputs are to the
float net's on 1,000 further images: minus their mean divergence, which tells models apart that have
the same accuracy. The accuracy is that on the 2,500 images of the test part. All layers are
quantized, as in plain_quantize.py. A run that is killed, or given more minutes, goes on from DIR.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from plain_quantize import CALIBRATION, NETS, accuracy
from records import add_arguments, print_table, write_json
from resnet32 import read_images
from torch import nn

from brevitas_axe.recipe import Run
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.tune import Tuning, tune

SEEN = 1000


def main() -> None:
    """Prints plain widths and the tuned model, and every trial."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", type=int, default=12)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--searcher", default=Tuning().searcher)
    parser.add_argument("--state", metavar="DIR")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    net = NETS["resnet32"]
    count, judged = (50, 250) if arguments.quick else (SEEN, 2500)
    images = read_images("train", CALIBRATION + count)[0]
    calibration, seen = images[:CALIBRATION], images[CALIBRATION:]
    model = net.build()
    with torch.no_grad():
        wanted = model(seen).log_softmax(1)

    def nearness(found: nn.Module) -> float:
        outputs = torch.cat([found(x) for x in seen.split(CALIBRATION)]).log_softmax(1)
        return -float(F.kl_div(outputs, wanted, log_target=True, reduction="batchmean"))

    limit = {"trials": 3, "minutes": None} if arguments.quick else {"minutes": arguments.minutes}
    found = tune(
        model,
        [calibration],
        validate=nearness,
        accumulator_bit_width=arguments.bits,
        tuning=Tuning(searcher=arguments.searcher, **limit),
        run=Run(state=arguments.state, progress=True),
    )
    test = read_images("val", judged)
    plain = quantize(model, [calibration], accumulator_bit_width=arguments.bits, progress=False)
    rows = [
        {"model": name, "bits": bits, "value": value, "accuracy": 100 * accuracy(net, each, *test)}
        for name, bits, value, each in (
            ("float", "", found.unquantized, model),
            ("plain widths", found.plain.bits, found.plain.value, plain.model),
            ("tuned", found.best.bits, found.best.value, found.model),
        )
    ]
    print_table(f"ResNet-32, {arguments.bits} bits, {len(found.trials)} trials", rows)
    print(found.best, found.certificate)
    write_json(arguments.output, {"benchmark": "tuning", "rows": rows})


if __name__ == "__main__":
    main()
