"""Floating-point formats beside integers of as many bits, on the net of digits_net.py.

    python benchmarks/formats.py [--quick] [--output FILE]

All layers, first and last too, have weights and inputs in one format; every row is solved at
quality "best" by `nearest`, on calibrated ranges, then on fitted ones, and by `gptq`. Beside the
accuracy on held-out images and the error of the outputs stands the widest accumulator that the
certificate proves, with no limit on it.
"""

from __future__ import annotations

import argparse

import torch
from digits_net import accuracy, load_model, read_digits
from records import add_arguments, print_table, write_json

from brevitas_axe import LayerPrecision, quantize
from brevitas_axe.formats import MINIFLOATS, bits_of

_INTEGERS = (4, 6, 8)
_SAMPLES = 512
# Column of the table → how a model is solved.
_WAYS = {
    "calibrated": {"solver": "nearest", "ranges": "max"},
    "fitted": {"solver": "nearest"},
    "gptq": {"solver": "gptq"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    images, held_out, _, wanted = read_digits()
    model = load_model(10 if arguments.quick else 40)
    with torch.no_grad():
        outputs = model(held_out)
    print(f"float32: {accuracy(model, held_out, wanted):.4f}")
    rows = []
    for format in sorted((*_INTEGERS, *MINIFLOATS), key=lambda each: (bits_of(each), str(each))):
        row = {
            "format": format if isinstance(format, str) else f"int{format}",
            "bits": bits_of(format),
        }
        for way, options in _WAYS.items():
            widths = LayerPrecision(format, format)
            result = quantize(model, [images[:_SAMPLES]], widths, progress=False, **options)
            with torch.no_grad():
                error = (result.model(held_out) - outputs).norm() / outputs.norm()
            row[f"{way}: accuracy"] = accuracy(result.model, held_out, wanted)
            row[f"{way}: error"] = float(error)
        row["accumulator"] = max(entry.width for entry in result.certificate.entries)
        rows.append(row)
    print_table("digits_net, one format for all", rows)
    write_json(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
