"""Compares the certificate of a live model with that of its file, on random one-layer models.

    python benchmarks/live_against_file.py [--models 600] [--seed 0]

Each model is an input quantizer (signed or not, with a zero point or not, 2 to 9 bits) and one
layer (linear; convolution or transposed convolution of one to three axes; grouped, depthwise,
strided, dilated; weights of 2 to 8 bits per tensor or channel; ours or Brevitas's; with bias or
not), certified with or without tiles, in memory and after its export.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from brevitas import nn as qnn
from brevitas.export import export_qonnx as brevitas_export
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn

from brevitas_axe.errors import ExportRefused
from brevitas_axe.export import export_qonnx
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE, Int8WeightPerTensorFloatAXE
from brevitas_axe.proof.certificate import certify, certify_file

COMPARED = (
    *("layer", "inputs", "minimum", "maximum", "width", "outer_width", "outer_bound", "tile_size"),
    *("weight_type", "input_type", "input_range", "target", "proven"),
)
_CONVOLUTIONS = {
    "conv1d": (qnn.QuantConv1d, 1),
    "conv2d": (qnn.QuantConv2d, 2),
    "conv3d": (qnn.QuantConv3d, 3),
    "transposed1d": (qnn.QuantConvTranspose1d, 1),
    "transposed2d": (qnn.QuantConvTranspose2d, 2),
}
KINDS = ("linear", *_CONVOLUTIONS)
_INPUTS = (Uint8ActPerTensorFloat, Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat)


def random_model(draw: np.random.Generator, kind: str) -> tuple[nn.Module, Tensor, bool]:
    """A model of one layer, calibrated; an input; whether the weights are ours."""

    def one_of(*choices):
        return choices[draw.integers(len(choices))]

    torch.manual_seed(int(draw.integers(2**31)))
    inputs = qnn.QuantIdentity(
        one_of(*_INPUTS), bit_width=int(draw.integers(2, 10)), return_quant_tensor=True
    )
    ours, per_tensor = bool(draw.integers(2)), bool(draw.integers(2))
    groups = 1 if kind == "linear" else one_of(1, 1, 2, 4)
    per_tensor |= "transposed" in kind and groups > 1
    quantizer = {
        (True, True): Int8WeightPerTensorFloatAXE,
        (True, False): Int8WeightPerChannelFloatAXE,
        (False, True): Int8WeightPerTensorFloat,
        (False, False): Int8WeightPerChannelFloat,
    }[ours, per_tensor]
    more = {"weight_quant": quantizer, "weight_bit_width": int(draw.integers(2, 9))}
    if ours:
        more["weight_accumulator_bit_width"] = one_of(None, 16, 20)
    more["bias"] = bool(draw.integers(2))
    wide, high = 4 * int(draw.integers(1, 4)), 4 * int(draw.integers(1, 4))
    if kind == "linear":
        layer, shape = qnn.QuantLinear(wide, high, **more), (one_of(2, 3), wide)
    else:
        make, axes = _CONVOLUTIONS[kind]
        if groups == 4:
            groups, high = wide, wide * one_of(1, 2)  # depthwise
        kernel, stride = one_of(1, 2, 3), one_of(1, 2)
        more |= {"stride": stride, "padding": one_of(0, 1) if kernel > 1 else 0, "groups": groups}
        layer, shape = make(wide, high, kernel, **more), (2, wide, *[6] * axes)
    x = torch.rand(shape) - (0 if inputs.act_quant.is_signed is False else 0.4)
    model = nn.Sequential(inputs, layer)
    with torch.no_grad():
        model(x)
    return model.eval(), x, ours


def disagreements(draw: np.random.Generator, kind: str, folder: Path) -> list[str]:
    """Differences of the two certificates of one random model; empty where they agree.

    Raises:
        ExportRefused: the model has no file.
    """
    model, x, ours = random_model(draw, kind)
    tile = int(draw.integers(1, 9)) if draw.integers(2) else None
    path = folder / "model.onnx"
    with warnings.catch_warnings(action="ignore"):
        live = certify(model, 16, tile, args=x).entries
        if ours:
            export_qonnx(model, x, path, target="qonnx")
        else:
            brevitas_export(model, args=x, export_path=str(path), dynamo=False)
        file = certify_file(path, 16, tile, fixed_initializers=True).entries
    found = []
    for name in COMPARED:
        left, right = ([getattr(e, name) for e in side] for side in (live, file))
        if left != right:
            found.append(f"{kind}: {name} is {left} live and {right} in the file")
    if not all(entry.proven for entry in live):
        found.append(f"{kind}: not proven live: {[e.reason for e in live]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for index in range(options.models):
            kind = KINDS[index % len(KINDS)]
            draw = np.random.default_rng([options.seed, index])
            try:
                found = disagreements(draw, kind, Path(folder))
            except ExportRefused as refused:
                counts["refused by the export"] += 1
                print(index, kind, refused)
                continue
            counts["disagree" if found else "agree"] += 1
            for line in found:
                print(index, line)
    print(dict(counts))


if __name__ == "__main__":
    main()
