"""Which layer of ResNet-32 gets which bits, under a budget of FPGA look-up tables.

    python benchmarks/allocation.py [--quick] [--output FILE] [--plot PNG]

Weight and input bits in 2..8 and accumulators in 8..20 are chosen together for 30 convolutions; the
first one and the classifier stay in float, in every arm alike. Budgets are shares of what uniform
W4A4 takes by FINN's estimate, at one folding for all arms. Every plan is solved by the same solver
on the same calibration images, certified, and judged on held-out images; three seeds draw three
sets of calibration images. "ilp W, A" leaves every accumulator as wide as its data types need.

"augmented" and "layer-wise" are bisection with and without what layers lose together, at one
precision per layer (W = A) and the middle budget.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev

import torch
from arms import calibrate, solver_fingerprint
from conv_quantizers import quantized
from records import CACHE, print_table, recorded, write_json
from resnet32 import accuracy, experiment, read_images
from torch import Tensor

from brevitas_axe import quantize
from brevitas_axe.allocate import Problem, allocate_bits, cost_table, make_problem, output_readers
from brevitas_axe.allocate.bisection import Bisection
from brevitas_axe.allocate.ilp import Ilp
from brevitas_axe.cost import choose_foldings, cost_model, layer_shapes, total_cost
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.sensitivity import Scores, make_choices, score, set_input_bits
from brevitas_axe.sensitivity.augmented import Augmented

IN_FLOAT = ("conv1", "linear")
MAX_CYCLES = 2**14
# The optimum to a thousandth of the harm: scores are estimates, the last digits take most time.
JOINT = Ilp(gap=1e-3)
BITS = (2, 3, 4, 5, 6, 8)
ACCUMULATORS = (8, 10, 12, 14, 16, 20)
SHARES = (0.6, 0.8, 1.0)
FRONT = (0.6, 0.7, 0.8, 0.9, 1.0)
ALLOCATORS = ("bisection", "clustering", "greedy")


@dataclass(frozen=True)
class Size:
    """How much is measured: images, seeds, widths, budgets."""

    calibration: int = 200
    judged: int = 1000
    seeds: int = 3
    pairs: int = 50
    quality: str = "best"
    bits: tuple[int, ...] = BITS
    accumulators: tuple[int, ...] = ACCUMULATORS
    shares: tuple[float, ...] = SHARES
    front: tuple[float, ...] = FRONT


QUICK = Size(50, 250, 1, 10, "fast", (2, 4, 8), (10, 14), (0.8,), (0.8, 1.0))


class Bench:
    """One seed: a calibrated model, its costs, and how a plan is judged."""

    def __init__(self, size: Size, seed: int) -> None:
        self.size, self.seed = size, seed
        pool, _ = read_images("train", 2000)
        drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        self.batches = list(pool[drawn[: size.calibration]].split(250))
        self.judged = read_images("val", size.judged)
        source = experiment(1, 1).model
        self.model = calibrate(quantized(source, 8, 8, IN_FLOAT), self.batches)
        self.one = (self.batches[0][:1],)
        self.shapes = layer_shapes(self.model, self.one, exclude=IN_FLOAT)
        self.readers = output_readers(self.model, self.one, exclude=IN_FLOAT)
        widest = Plan.uniform(self.shapes, LayerPrecision(8, 8))
        self.foldings = choose_foldings(self.shapes, widest, MAX_CYCLES)
        self.reference = Plan.uniform(self.shapes, LayerPrecision(4, 4))
        self.unit = self.lut(self.reference)

    def choices(self, precisions: Iterable[LayerPrecision]) -> Choices:
        """The same precisions for every layer."""
        return Choices(dict.fromkeys(self.shapes, tuple(precisions)))

    def joint(self, accumulators: Sequence[int | None]) -> Choices:
        """Every combination of widths that can be built."""
        bits = self.size.bits
        return make_choices(
            self.model,
            self.one,
            weight=bits,
            input=bits,
            accumulator=accumulators,
            exclude=IN_FLOAT,
        )

    def lut(self, plan: Plan) -> float:
        """What a plan costs, from the shapes that it gives the model."""
        planned = deepcopy(self.model)
        set_input_bits(planned, plan, self.one, exclude=IN_FLOAT)
        shapes = layer_shapes(planned, self.one, exclude=IN_FLOAT)
        return total_cost(cost_model("finn_lut"), plan, shapes, self.foldings)

    def problem(self, scores: Scores, share: float) -> Problem:
        """Under a share of the reference's look-up tables."""
        cost = cost_table("finn_lut", scores.choices, self.shapes, self.readers, self.foldings)
        return make_problem(scores, {"finn_lut": cost}, {"finn_lut": share * self.unit})

    def judge(self, plan: Plan) -> dict:
        """Accuracy and cost of a plan after the solve, from the cache if they are there."""
        key = {
            "plan": plan.to_json(),
            "seed": self.seed,
            "calibration": self.size.calibration,
            "judged": self.size.judged,
            "quality": self.size.quality,
            "cycles": MAX_CYCLES,
            "solvers": solver_fingerprint(),
            "torch": torch.__version__,
        }
        return recorded("allocation", key, lambda: self._judged(plan))

    def _judged(self, plan: Plan) -> dict:
        planned = deepcopy(self.model)
        set_input_bits(planned, plan, self.one, exclude=IN_FLOAT)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            result = quantize(
                planned,
                self.batches,
                plan=plan,
                quality=self.size.quality,
                exclude=IN_FLOAT,
                progress=False,
            )
        return {
            "accuracy": accuracy(result.model, *self.judged),
            "lut": self.lut(plan),
            "certified": result.certificate.ok,
        }

    def score(self, choices: Choices, scorer: object, batches: list[Tensor]) -> Scores:
        """Kept on disk, by content."""
        return score(
            self.model, batches, choices, scorer, exclude=IN_FLOAT, cache=CACHE / "allocation"
        )


def rows_of(bench: Bench) -> list[dict]:
    """All rows of one seed."""
    size = bench.size
    rows = [_row(bench, "uniform W4A4", 1.0, bench.reference)]
    scores = bench.score(bench.joint(size.accumulators), "local", bench.batches)
    wide = bench.score(bench.joint([None]), "local", bench.batches)
    for share in sorted({*size.front, *size.shares}):
        problem = bench.problem(scores, share)
        for name in ("uniform", "ilp", *(ALLOCATORS if share in size.shares else ())):
            allocator = JOINT if name == "ilp" else name
            rows.append(_row(bench, name, share, allocate_bits(problem, allocator).plan))
        if share in size.shares:
            plan = allocate_bits(bench.problem(wide, share), JOINT).plan
            rows.append(_row(bench, "ilp W, A", share, plan))
    return rows + interactions(bench)


def interactions(bench: Bench) -> list[dict]:
    """Bisection ordered by each layer's own Hessian score, and by the augmented one."""
    size = bench.size
    choices = bench.choices(LayerPrecision(b, b) for b in size.bits)
    few = [bench.batches[0][: size.pairs]]
    scores = bench.score(choices, Augmented(probes=2), few)
    share = size.shares[len(size.shares) // 2]
    rows = []
    for name, table in (("augmented", scores), ("layer-wise", replace(scores, pairs={}))):
        found = allocate_bits(bench.problem(table, share), Bisection())
        rows.append(_row(bench, name, share, found.plan))
    return rows


def _row(bench: Bench, allocator: str, share: float, plan: Plan) -> dict:
    found = bench.judge(plan)
    print(f"seed {bench.seed}, {allocator} at {share}: {found}", flush=True)
    return {"seed": bench.seed, "allocator": allocator, "share": share, **found}


def averages(rows: Sequence[dict]) -> list[dict]:
    """Mean over seeds, with the spread, of every allocator at every share."""
    groups: dict[tuple[str, float], list[dict]] = {}
    for row in rows:
        groups.setdefault((row["allocator"], row["share"]), []).append(row)
    unit = mean(row["lut"] for row in groups["uniform W4A4", 1.0])
    return [
        {
            "allocator": allocator,
            "budget, share of W4A4": share,
            "LUT, share of W4A4": mean(row["lut"] for row in group) / unit,
            "accuracy": mean(row["accuracy"] for row in group),
            "deviation": stdev(row["accuracy"] for row in group) if len(group) > 1 else None,
            "certified": all(row["certified"] for row in group),
        }
        for (allocator, share), group in groups.items()
    ]


def verdict(table: Sequence[dict]) -> dict:
    """What the benchmark is to show, as numbers.

    Returns:
        least_gain: smallest accuracy of the joint search minus that of uniform, over budgets.
        share_needed: least measured share of LUTs at which the joint search has the accuracy of
            uniform W4A4; None if it never has.
        augmented_gain: accuracy of the augmented order minus that of the layer-wise one.
    """
    found = {(row["allocator"], row["budget, share of W4A4"]): row for row in table}

    def accuracy_of(name: str, share: float) -> float:
        return found[name, share]["accuracy"]

    joint = [row for row in table if row["allocator"] == "ilp"]
    wanted = accuracy_of("uniform W4A4", 1.0)
    enough = [row["LUT, share of W4A4"] for row in joint if row["accuracy"] >= wanted]
    shares = [row["budget, share of W4A4"] for row in joint]
    (augmented,) = (row for row in table if row["allocator"] == "augmented")
    (layerwise,) = (row for row in table if row["allocator"] == "layer-wise")
    return {
        "least_gain": min(accuracy_of("ilp", s) - accuracy_of("uniform", s) for s in shares),
        "share_needed": min(enough, default=None),
        "augmented_gain": augmented["accuracy"] - layerwise["accuracy"],
    }


def draw(table: Sequence[dict], path: Path) -> None:
    """Accuracy against look-up tables."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5))
    for name in dict.fromkeys(row["allocator"] for row in table):
        group = sorted(
            (row["LUT, share of W4A4"], 100 * row["accuracy"], 100 * (row["deviation"] or 0))
            for row in table
            if row["allocator"] == name
        )
        x, y, spread = zip(*group, strict=True)
        axes.errorbar(x, y, spread, marker="o", capsize=2, label=name)
    axes.set(xlabel="LUTs, share of uniform W4A4", ylabel="top-1 accuracy, %")
    axes.set_title("ResNet-32, CIFAR-10")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    """Measures every row and prints the table and what it shows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small run that proves it works")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    parser.add_argument("--plot", type=Path, help="PNG file for the fronts")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    size = QUICK if arguments.quick else Size()
    rows = [row for seed in range(size.seeds) for row in rows_of(Bench(size, seed))]
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
