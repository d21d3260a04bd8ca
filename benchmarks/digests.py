"""Digests of the integers and scales that the solvers give: equal before and after a change.

    python benchmarks/digests.py [--layers 1000] [--solvers NAME ...] [--steps 200] [--output FILE]

Three lines, each a SHA-256: random layers under every solver at both qualities, the character
language model of char_lm.py (trained here for so many steps, then cached), and ResNet-32. A change
that is to leave every integer alone prints the same lines before and after, on one machine with one
thread. The first line depends on which solvers there are: name those that both versions have.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path

import char_lm
import numpy as np
import resnet32
import torch
from arms import Experiment
from random_layers import random_problem
from records import write_json
from torch import nn

import brevitas_axe
from brevitas_axe.errors import AxeError
from brevitas_axe.registry import method, methods


def add_tensor(digest: hashlib._Hash, tensor: torch.Tensor | None) -> None:
    """Type, shape and bytes of a tensor."""
    if tensor is not None:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().contiguous().numpy().tobytes())


def of_layers(count: int, solvers: Sequence[str]) -> str:
    """Random layers × solvers × both qualities; a refusal counts by its class."""
    digest = hashlib.sha256()
    for index in range(count):
        draw = np.random.default_rng([7, index])
        act_order = bool(draw.integers(2))
        problem, _ = random_problem(draw)
        for name in solvers:
            for quality in ("fast", "best"):
                digest.update(f"{index} {name} {quality}".encode())
                try:
                    solution = method("solvers", name)(
                        problem, act_order=act_order, quality=quality
                    )
                except AxeError as error:
                    digest.update(type(error).__name__.encode())
                    continue
                for tensor in (solution.integers, solution.scale, solution.bias_shift):
                    add_tensor(digest, tensor)
    return digest.hexdigest()


def of_model(experiment: Experiment, weight_bits: int, input_bits: int, accumulator: int) -> str:
    """Weights, which hold integers × scale, of a model that every mode solved."""
    digest = hashlib.sha256()
    modes = ("gpfq", "fast"), ("gptq", "fast"), ("qronos", "best")
    for name, quality in modes:
        model = calibrated(experiment, weight_bits, input_bits)
        mode = getattr(brevitas_axe, f"axe_{name}_mode")
        with (
            torch.no_grad(),
            mode(model, accumulator_bit_width=accumulator, quality=quality) as axe,
        ):
            for batch in experiment.batches:
                axe.model(batch)
            while axe.update():
                pass
        for key, value in sorted(model.state_dict().items()):
            digest.update(key.encode())
            add_tensor(digest, value)
    return digest.hexdigest()


def calibrated(experiment: Experiment, weight_bits: int, input_bits: int) -> nn.Module:
    """The Brevitas model of an experiment, its activations calibrated."""
    from brevitas.graph.calibrate import calibration_mode

    model = deepcopy(experiment.quantize(weight_bits, input_bits)).eval()
    with torch.no_grad(), calibration_mode(model):
        for batch in experiment.batches:
            model(batch)
    return model


def main() -> None:
    """Prints the digests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--solvers", nargs="+", default=sorted(methods("solvers")), metavar="NAME")
    parser.add_argument("--steps", type=int, default=200, help="training steps of the LM")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = {"layers": of_layers(arguments.layers, sorted(arguments.solvers))}
    print("layers  ", found["layers"], flush=True)
    found["char_lm"] = of_model(char_lm.experiment(arguments.steps, 32, 1), 4, 8, 16)
    print("char_lm ", found["char_lm"], flush=True)
    found["resnet32"] = of_model(resnet32.experiment(250, 1), 4, 4, 12)
    print("resnet32", found["resnet32"], flush=True)
    write_json(arguments.output, found)


if __name__ == "__main__":
    main()
