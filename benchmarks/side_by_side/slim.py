"""SliM-LLM as its authors' code has it, and our split `slim`, on the same layers.

    python benchmarks/side_by_side/slim.py

Runs `SliMGPTQ` of Aaronhuang-778/SliM-LLM (fetched) on the CPU: same weights, inputs, bits and
groups. Printed are the bits of the groups by both, and the squared error of the outputs as a share
of the outputs' energy: of theirs, with asymmetric grids, of rounding to nearest with our scales,
and of our branches solved as one.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys

import torch
from official import official
from records import add_arguments, print_table, write_json
from torch import Tensor, nn

from brevitas_axe.methods.solvers.qronos import qronos
from brevitas_axe.methods.splits.branches import branch_problems, solve_branches
from brevitas_axe.methods.splits.layers import float_problem
from brevitas_axe.methods.splits.slim import (
    Slim,
    divergences,
    rounded_asymmetric,
    salience_of,
    shifted,
)
from brevitas_axe.plan import LayerPrecision

REPOSITORY = "Aaronhuang-778/SliM-LLM"
COMMIT = "cfdf5ff9a1"
GROUP = 128


def layer(seed: int, columns: int, rows: int = 128) -> tuple[nn.Linear, Tensor]:
    """A layer whose inputs and columns differ much in size, and its inputs [8, 256, columns]."""
    torch.manual_seed(seed)
    linear = nn.Linear(columns, rows, bias=False)
    weight = torch.randn(rows, columns) * torch.randn(columns).mul(0.5).exp()
    linear.weight.data = weight / 32
    return linear, torch.randn(8, 256, columns) * torch.randn(columns).mul(0.7).exp()


def theirs(linear: nn.Linear, x: Tensor, bits: int) -> tuple[list[int], Tensor]:
    """(bits of the groups, weights) of the authors' code."""
    from slim_gptq import SliMGPTQ
    from utils.mixed_quantizer import Quantizer

    mine = nn.Linear(linear.in_features, linear.out_features, bias=False)
    mine.weight.data = linear.weight.data.clone()
    solver = SliMGPTQ(
        mine,
        Quantizer(mine.weight, method=f"{bits}bit", groupsize=GROUP),
        bit_width=bits,
    )
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        solver.add_batch(x, None)
        solver.get_salience(blocksize=GROUP)
        solver.get_block(x, x.flatten(0, 1) @ linear.weight.mT, blocksize=GROUP)
        found, *_ = solver.fasterquant(blocksize=GROUP)
    return found, mine.weight.data


def published_bits(linear: nn.Linear, x: Tensor, bits: int) -> list[int]:
    """Bits of the groups by our code, as published; one bit is allowed here."""
    rows = x.flatten(0, 1)
    salience = salience_of(linear.weight.double(), (rows.mT @ rows / len(rows)).double())
    counts, losses = divergences(
        linear.weight, salience, rows, bits, GROUP, rounded_asymmetric, published=True
    )
    best = counts[min(range(len(counts)), key=losses.__getitem__)]
    return (bits + shifted(salience, GROUP, best)).tolist()


def ours(linear: nn.Linear, x: Tensor, bits: int, split: Slim) -> dict:
    """Errors of our branches."""
    rows = x.flatten(0, 1)
    precision = LayerPrecision(weight=bits, input=8, tile=GROUP)
    problem = float_problem("fc", linear, precision, rows)
    branches = split(problem, precision, rows)
    parts, moments = branch_problems(problem, branches)
    solved, _, _ = solve_branches(
        parts, moments, lambda some: [qronos(p, act_order=True, quality="best") for p in some]
    )
    weight = torch.zeros_like(linear.weight.data, dtype=torch.float64)
    for branch, part, solution in zip(branches, parts, solved, strict=True):
        weight[:, branch.columns] = solution.value(part)[0]
    widths = [b.precision.weight or 0 for b in branches for _ in range(0, len(b.columns), GROUP)]
    return {"weight": weight.float(), "mean": sum(widths) / len(widths)}


@torch.no_grad()
def main() -> None:
    """Prints a row for every width and seed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.cuda.synchronize = lambda *_: None
    sys.path.insert(0, str(official(REPOSITORY, COMMIT, "slim-llm") / "slim-llm"))
    rows = []
    for bits in (2, 3) if arguments.quick else (2, 3, 4):
        for seed in (1,) if arguments.quick else (1, 2, 3):
            linear, x = layer(seed, 1024)
            real = x.flatten(0, 1) @ linear.weight.data.mT
            found, weight = theirs(linear, x, bits)

            def error(weight: Tensor, x: Tensor = x, real: Tensor = real) -> float:
                off = x.flatten(0, 1) @ weight.mT - real
                return float(off.square().sum() / real.square().sum())

            row = {
                "bits": bits,
                "seed": seed,
                "theirs": "".join(map(str, found)),
                "ours, published": "".join(map(str, published_bits(linear, x, bits))),
                "their error": error(weight),
            }
            mine = ours(linear, x, bits, Slim(group=GROUP))
            row |= {"our error": error(mine["weight"]), "our mean bits": mine["mean"]}
            rows.append(row)
    print_table("SliM-LLM, groups of 128", rows)
    write_json(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
