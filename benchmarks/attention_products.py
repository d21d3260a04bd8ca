"""A trained vision transformer whose attention products are integers on narrow accumulators, too.

    python benchmarks/attention_products.py [--accumulators none 16] [--images 1000]

The model is `vit_cifar10` of the shared data (vision_transformer.py), W4A8, calibrated with 128
training images. Each accumulator has a row with attention, patch embedding and classifier in float,
and one with integers: accuracy on judged images, how many dot products the certificate proves,
those of attention among them, and what stays in float.
"""

from __future__ import annotations

import argparse
import time
import warnings

import torch
from records import print_table
from vision_transformer import Classifier, images_of, logits_of

from brevitas_axe import quantize
from brevitas_axe.model.attention_products import products_plan

CALIBRATION, BATCH = 128, 32


def row(accumulator: int | None, attention: str, count: int) -> dict[str, str]:
    """One line of the table."""
    start = time.perf_counter()
    data = [*images_of("train")[0][:CALIBRATION].split(BATCH)]
    result = quantize(
        Classifier().eval(),
        data,
        accumulator_bit_width=accumulator,
        weight_bit_width=4,
        input_bit_width=8,
        attention=attention,
        outside=attention,
        progress=False,
    )
    images, labels = images_of("val")
    right = logits_of(result.model, images[:count]).argmax(1) == labels[:count]
    return {
        "P": "any" if accumulator is None else str(accumulator),
        "attention and the rest": attention,
        "accuracy": f"{100 * right.float().mean():.1f} %",
        "proven": str(sum(entry.fits for entry in result.certificate.judged)),
        "of attention": str(len(products_plan(result.model).layers)),
        "in float": ", ".join(n for n in result.floats if not n.endswith(".forward")),
        "s": f"{time.perf_counter() - start:.0f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--accumulators", nargs="+", default=["none", "16"], metavar="P")
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = [
        row(None if text == "none" else int(text), attention, arguments.images)
        for text in arguments.accumulators
        for attention in ("float", "quantized")
    ]
    print_table("vit_cifar10, W4A8", rows)


if __name__ == "__main__":
    main()
