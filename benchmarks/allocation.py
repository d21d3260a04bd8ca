"""Bits of every layer of ResNet-32 under a budget of FPGA look-up tables.

    python benchmarks/allocation.py [--quick] [--seeds N ...] [--output FILE] [--plot PNG]
    python benchmarks/allocation.py --allocators uniform ilp search --shares 0.8 --judge train

Weight and input bits in 2 .. 8 and accumulators in 8 .. 20 or as wide as the data types need are
chosen together for 30 convolutions; the first one and the classifier stay in float, and each width
of an activation has its own range (`fit_ranges`), in every arm alike. Budgets are shares of what
uniform W4A4 takes by FINN's estimate, at one folding for all arms. Every plan is solved by the same
solver on the same 100 calibration images, certified, exported and judged on 2,500 held-out images.
Three seeds draw three sets of calibration images. All numbers are kept: a killed run continues.

All allocators see the scores of `local`. `search`, the joint search, solves uniform precision, the
greedy plan, the program's optimum, also by the squared error of the logits, and the optima of 6
programs with varied weights, and takes the one with the least divergence on 1,000 further training
images. `shares` judges the first stage of the net by the squared error of the logits and the others
by the divergence, on fewer choices (27 per layer). "ilp W, A" leaves every accumulator as wide as
its data types need. "augmented" and "layer-wise" are bisection with and without what layers lose
together, at one precision per layer (W = A) and the middle budget.

On 2,500 images, differences in accuracy below about a percent are not significant. "--judge train"
evaluates on 8,000 training images that no arm has used. The float net was trained on them, so that
all arms score higher there.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from allocation_case import QUICK, Bench, Size
from allocation_table import JOINT, REFERENCE, averages, draw, verdict
from records import print_table, write_json

from brevitas_axe.methods.allocate import Problem
from brevitas_axe.methods.allocate.search import Search
from brevitas_axe.registry import methods


def rows_of(
    bench: Bench, only: Sequence[str] = (), shares: Sequence[float] | None = None
) -> list[dict]:
    """All rows of one seed, or those of some allocators and budgets."""
    size = bench.size
    rows = [bench.row(REFERENCE, 1.0, bench.reference)]

    def add(name: str, share: float, allocator: Any, problem: Callable[[], Problem]) -> None:
        rows.append(bench.found(name, problem, share, allocator))

    for share in shares or size.shares:
        for name in only or methods("allocate"):
            if name == JOINT:
                rest = Search(trials=size.trials)
                add(
                    name, share, rest, lambda s=share: bench.measured(bench.problem(bench.joint, s))
                )
            elif name == "shares":
                add(name, share, name, lambda s=share: bench.problem(bench.decoupled, s))
            else:
                add(name, share, name, lambda s=share: bench.problem(bench.joint, s))
        if not only:
            add("ilp W, A", share, "ilp", lambda s=share: bench.problem(bench.wide, s))
    if only:
        return rows
    share = size.shares[len(size.shares) // 2]
    for name in ("augmented", "layer-wise"):

        def ordered(name: str = name) -> Problem:
            scores = bench.augmented
            return bench.problem(
                scores if name == "augmented" else replace(scores, pairs={}), share
            )

        add(name, share, "bisection", ordered)
    return rows


def main() -> None:
    """Measures every row and prints the table and the verdict."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run that proves it works")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the calibration images; 0 1 2")
    parser.add_argument("--allocators", nargs="+", default=[], help="only these, no other arms")
    parser.add_argument("--shares", type=float, nargs="+", help="budgets; 0.6 0.8 1")
    parser.add_argument("--metric", choices=["kl", "mse"], default="kl", help="of the scores")
    parser.add_argument("--judge", choices=["val", "train"], default="val", help="on which images")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--plot", type=Path, help="PNG file for the fronts")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else Size()
    seeds = arguments.seeds or ([0] if arguments.quick else [0, 1, 2])
    rows = [
        row
        for seed in seeds
        for row in rows_of(
            Bench(size, seed, arguments.judge, arguments.metric),
            arguments.allocators,
            arguments.shares,
        )
    ]
    table = averages(rows)
    print_table("ResNet-32 on CIFAR-10, means over calibration seeds", table)
    shown = verdict(table)
    print(shown)
    write_json(
        arguments.output,
        {"benchmark": "allocation", "rows": rows, "means": table, "verdict": shown},
    )
    if arguments.plot:
        draw(table, arguments.plot)


if __name__ == "__main__":
    main()
