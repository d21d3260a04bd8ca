"""Certificates after every optimizer step of a training that moves the weights far.

    python benchmarks/certified_training.py [--quick] [--output FILE]

A ResNet-8 and a transformer block (`trained_nets`), 4-bit weights, 8-bit inputs, are trained by
AdamW on random images and a random task, at a learning rate that changes most integers. After
every step the live model is certified at P bits; every few steps, and at the end, so is the
exported QONNX file, from nothing but the integers in it. Any dot product that is not proven counts
as a violation.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from brevitas.graph.calibrate import calibration_mode
from records import add_arguments, print_table, write_json
from torch import nn
from trained_nets import Block, resnet8

from brevitas_axe import Int8WeightPerChannelFloatAXE, certify, certify_file, export_qonnx
from brevitas_axe.errors import ExportRefused
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.run.finetune import ep_init, parameter_groups

LEARNING_RATE = 0.03  # nearly a third of an integer per weight and step
NETS = {
    "ResNet-8": (resnet8, (16, 3, 32, 32), ()),
    # The products of attention have no weights that a width could be planned for.
    "transformer block": (lambda weight: Block(weight, 64, 4), (8, 16, 64), ("Block.forward",)),
}


def started(net: str, accumulator_bits: int) -> tuple[nn.Module, torch.Tensor]:
    """A calibrated network that its budgets bind, and its training data."""
    torch.manual_seed(0)
    build, shape, _ = NETS[net]
    weight = {
        "weight_quant": Int8WeightPerChannelFloatAXE,
        "weight_bit_width": 4,
        "weight_accumulator_bit_width": accumulator_bits,
    }
    model = build(weight).train()  # ranges are to be those behind batch norms in training
    x = torch.rand(shape) if len(shape) == 4 else torch.randn(shape)
    with torch.no_grad(), calibration_mode(model):
        model(x)
    model.eval()
    return ep_init(model, (x,)), x


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    """Of every layer, flat."""
    return {
        name: integer_weight(name, layer)[0].flatten() for name, layer in find_layers(model).items()
    }


def changed_share(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> float:
    """Fraction of all weight integers that differ."""
    differing = sum(int((before[name] != after[name]).sum()) for name in before)
    return differing / sum(q.numel() for q in before.values())


def violations(certificate: Any, exclude: tuple[str, ...] = ()) -> int:
    """Dot products that are not proven to fit."""
    return sum(entry.name not in exclude for entry in certificate.failures)


def export(model: nn.Module, x: torch.Tensor, path: Path) -> None:
    """Writes the QONNX file, whose weights are the same whatever image it is traced and checked on.

    Float operations in another order now and then round an activation to the next integer, and
    export then refuses, because outputs differ: the next image is tried.
    """
    for index in range(len(x)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer's, about shapes
                export_qonnx(model, x[index : index + 1], path, target="qonnx")
        except ExportRefused as refused:
            if "computes something else" not in str(refused) or index + 1 == len(x):
                raise
        else:
            return


def exported_violations(model: nn.Module, x: torch.Tensor, bits: int, path: Path) -> int:
    """Dot products of the exported file that are not proven to fit."""
    export(model, x, path)
    found = certify_file(path, bits)
    planned = find_layers(model)
    quantized = [entry for entry in found.entries if entry.layer in planned]
    assert len(quantized) >= len(planned), "a layer is missing in the file"
    return sum(not entry.fits for entry in quantized)


def train(net: str, bits: int, steps: int, every: int, folder: Path) -> dict[str, object]:
    """One row of the table."""
    model, x = started(net, bits)
    exclude = NETS[net][2]
    target = torch.randn_like(model(x).detach())
    optimizer = torch.optim.AdamW(parameter_groups(model, LEARNING_RATE))
    begun, first, previous = time.perf_counter(), integers(model), integers(model)
    bad = bad_files = certificates = files = 0
    moved, losses = [], []
    for step in range(1, steps + 1):
        model.train()
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        model.eval()
        bad += violations(certify(model, bits, exclude=exclude, args=(x[:1],)))
        certificates += 1
        if step % every == 0 or step == steps:
            bad_files += exported_violations(model, x, bits, folder / f"{step}.onnx")
            files += 1
        present = integers(model)
        moved.append(changed_share(previous, present))
        previous = present
        if step % every == 0:
            print(f"{net}, step {step}: {bad} violations, {bad_files} in files", flush=True)
    return {
        "net": net,
        "P": bits,
        "steps": steps,
        "certificates": certificates,
        "violations": bad,
        "files": files,
        "violations in files": bad_files,
        "moved per step": sum(moved) / steps,
        "moved in all": changed_share(first, previous),
        "loss, first": losses[0],
        "loss, last": losses[-1],
        "seconds": time.perf_counter() - begun,
    }


def main() -> None:
    """Trains every network and prints the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    add_arguments(parser, threads=1)
    parser.add_argument("--accumulator", type=int, default=16)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between exported files")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    steps = 4 if arguments.quick else arguments.steps
    with tempfile.TemporaryDirectory() as folder:
        rows = [
            train(net, arguments.accumulator, steps, arguments.every, Path(folder)) for net in NETS
        ]
    print_table("certificates during training", rows)
    write_json(arguments.output, {"benchmark": "certified training", "rows": rows})


if __name__ == "__main__":
    main()
