"""Branches of a layer solved as one problem, against the same branches solved one by one.

    python benchmarks/joint_branches.py [--layers 100] [--columns 128] [--rows 32] [--output FILE]

Random layers with correlated inputs, whose first half of the columns has 6-bit inputs and the other
8-bit ones; 3-bit weights, qronos at quality "best", without a limit, at 14 and at 12 bits. Prints
the mean errors ||W X - Q X~||^2 / ||W X||^2, the mean of their ratios, and how many rows and layers
lose by the joint solve; exits with 1 where any does.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from records import write_json
from torch import Tensor
from tqdm import tqdm

from brevitas_axe.methods.solvers import LayerProblem, LayerSolution
from brevitas_axe.methods.splits import Branch
from brevitas_axe.methods.splits.branches import branch_problems, solve_branches, together
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

WEIGHT_BITS, INPUT_BITS = 3, (6, 8)
LIMITS = (None, 14, 12)


def layer(seed: int, rows: int, columns: int) -> tuple[LayerProblem, Tensor]:
    """A layer whose halves have inputs of different bits, and the energy of each row's output."""
    generator = torch.Generator().manual_seed(seed)
    samples, half = 4 * columns, columns // 2
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64) / columns**0.5
    inputs = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mix
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    rounded = inputs.clone()
    for bits, part in zip(INPUT_BITS, (slice(half), slice(half, columns)), strict=True):
        most = 2 ** (bits - 1) - 1
        step = inputs[:, part].abs().max() / most
        rounded[:, part] = (inputs[:, part] / step).round().clamp(-most - 1, most) * step
    largest = 2 ** (WEIGHT_BITS - 1) - 1
    problem = LayerProblem(
        weight=weight.float().unsqueeze(0),
        hessian=(rounded.mT @ rounded / samples).float().unsqueeze(0),
        cross=(rounded.mT @ inputs / samples).float().unsqueeze(0),
        scale=(weight.abs().amax(-1) / largest).float().unsqueeze(0),
        weight_low=-largest,
        weight_high=largest,
        input_low=-128,
        input_high=127,
    )
    return problem, (weight @ inputs.mT).square().mean(-1)


def compare(seed: int, rows: int, columns: int, limit: int | None) -> dict[str, Any]:
    """Errors of one layer, apart and joint, and the rows that lose."""
    problem, energy = layer(seed, rows, columns)
    halves = torch.arange(columns).split(columns // 2)
    branches = [
        Branch(name, half, problem.weight[0][:, half], LayerPrecision(WEIGHT_BITS, bits, limit))
        for name, half, bits in zip(("low", "high"), halves, INPUT_BITS, strict=True)
    ]
    parts, moments = branch_problems(problem, branches)
    given: list[LayerSolution] = []

    def solve(problems: Any) -> list[LayerSolution]:
        found = [method("solvers", "qronos")(p, act_order=True, quality="best") for p in problems]
        given.extend(found)
        return found

    _, whole, kept = solve_branches(parts, moments, solve)
    apart = together(given[: len(parts)], parts)
    before, after = (solution.loss(whole)[0] + energy for solution in (apart, kept))
    return {
        "apart": float(before.sum() / energy.sum()),
        "joint": float(after.sum() / energy.sum()),
        "rows_that_lose": int((after > before).sum()),
    }


def main() -> None:
    """Solves all layers, prints a line per limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--columns", type=int, default=128)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for limit in LIMITS:
        layers = [
            compare(seed, arguments.rows, arguments.columns, limit)
            for seed in tqdm(range(arguments.layers), mininterval=5)
        ]
        ratios = [one["joint"] / one["apart"] for one in layers]
        result = {
            "apart": sum(one["apart"] for one in layers) / len(layers),
            "joint": sum(one["joint"] for one in layers) / len(layers),
            "mean_ratio": sum(ratios) / len(ratios),
            "worst_ratio": max(ratios),
            "rows_that_lose": sum(one["rows_that_lose"] for one in layers),
        }
        results[str(limit)] = result
        name = "no limit" if limit is None else f"{limit} bits"
        print(name, {key: round(value, 4) for key, value in result.items()}, flush=True)
    write_json(arguments.output, {"settings": vars(arguments) | {"output": None}, **results})
    raise SystemExit(any(result["rows_that_lose"] for result in results.values()))


if __name__ == "__main__":
    main()
