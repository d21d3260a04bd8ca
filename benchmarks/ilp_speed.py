"""How long the allocation itself takes.

    python benchmarks/ilp_speed.py [--quick] [--output FILE]

First the integer program: 200 layers with 40 choices each under two budgets, random harms and
costs, several seeds. Then the scorer `local` on ResNet-32 with 40 choices for each of 30 layers,
against one run of Brevitas's own a2gpfq_mode on the same images, in the same process.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from arms import Setting
from records import print_table, write_json
from resnet32 import experiment

from brevitas_axe.methods.allocate import Problem, Quantity, allocate_bits
from brevitas_axe.methods.sensitivity import make_choices, score
from brevitas_axe.plan import Choices, LayerPrecision

LAYERS = 200
WIDTHS = [LayerPrecision(w, a, p) for w, a, p in product((2, 3, 4, 6, 8), (4, 8), (10, 12, 14, 16))]
IN_FLOAT = ("conv1", "linear")


def random_problem(seed: int) -> Problem:
    """Harm falls and costs grow with bits, with noise; both budgets bind."""
    random = np.random.default_rng(seed)
    bits = np.array([(c.weight, c.input, c.accumulator) for c in WIDTHS], dtype=float)
    weight, inputs, sums = bits.T

    def tables(values) -> tuple[np.ndarray, ...]:
        return tuple(
            10 ** random.uniform(0, 3) * values() * random.uniform(0.9, 1.1, len(WIDTHS))
            for _ in range(LAYERS)
        )

    harm = Quantity(tables(lambda: 4**-weight + 4**-inputs + 4 ** (8 - sums)))
    costs = {
        "bops": Quantity(tables(lambda: weight * inputs + sums)),
        "memory": Quantity(tables(lambda: weight)),
    }
    choices = Choices({f"layer{i}": tuple(WIDTHS) for i in range(LAYERS)})
    return Problem(choices, harm, costs, {n: 0.45 * q.extreme(np.max) for n, q in costs.items()})


def time_programs(seeds: int) -> list[dict]:
    """Seconds of exact solutions."""
    rows = []
    for seed in range(seeds):
        problem = random_problem(seed)
        start = time.perf_counter()
        found = allocate_bits(problem, "ilp")
        seconds = time.perf_counter() - start
        spent = {n: found.costs[n] / limit for n, limit in problem.budgets.items()}
        rows.append({"seed": seed, "seconds": seconds, **spent})
    return rows


def time_scores(images: int) -> dict:
    """Seconds of the local scores of all choices, and of one run of Brevitas's algorithm."""
    task = experiment(images, 1)
    model = task.calibrated(4, 8)
    example = (task.batches[0][:1],)
    options = {"weight": (2, 3, 4, 6, 8), "input": (4, 8), "accumulator": (12, 14, 16, 20)}
    choices = make_choices(model, example, exclude=IN_FLOAT, **options)
    # Compiled kernels are kept on disk; what compiles on the first run is not counted.
    one = Choices(dict(list(choices.layers.items())[:1]))
    score(model, [task.batches[0][:8]], one, "local", exclude=IN_FLOAT)
    start = time.perf_counter()
    score(model, task.batches, choices, "local", exclude=IN_FLOAT)
    seconds = time.perf_counter() - start
    _, brevitas = task.solved(Setting("brevitas a2gpfq", 4, 8, accumulator_bits=16))
    return {
        "layers": len(choices.layers),
        "choices per layer": max(map(len, choices.layers.values())),
        "images": images,
        "local scores, s": seconds,
        "brevitas a2gpfq, s": brevitas,
        "ratio": seconds / brevitas,
    }


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run that proves it works")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    programs = time_programs(2 if arguments.quick else 10)
    print_table(f"integer program: {LAYERS} layers, {len(WIDTHS)} choices, two budgets", programs)
    scores = time_scores(25 if arguments.quick else 250)
    print_table("ResNet-32", [scores])
    write_json(arguments.output, {"benchmark": "ilp_speed", "programs": programs, "scores": scores})


if __name__ == "__main__":
    main()
