"""Widths chosen within one run of training, beside widths chosen first and trained afterwards.

    python benchmarks/fliqs.py [--quick] [--output FILE]

A ResNet-8, trained in float by this script and then cached; the first convolution and the
classifier stay in float. At the bit operations of uniform W4A4 and W3A3, every arm takes the same
number of steps in all, from the same float weights, on accumulators of 16 bits: uniform widths and
the plans of the allocators `ilp` and `search` are fine-tuned, and `search_widths` (FLIQS) chooses
while it trains. A layer's inputs have the bits of its weights in every arm. The last epoch is
judged, with batch norms estimated anew, on images that nothing has seen.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import brevitas
import torch
from arms import calibrate, model_fingerprint, solver_fingerprint
from conv_quantizers import quantized
from records import add_arguments, print_table, recorded, write_json
from resnet8 import Augmented, Images, read, trained
from resnet32 import accuracy
from torch import nn

from brevitas_axe import LayerPrecision, Plan, Run, allocate, apply_plan, finetune
from brevitas_axe.methods.cost import layer_shapes, total_cost
from brevitas_axe.methods.cost.bops import bops
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.plan import Choices
from brevitas_axe.run.finetune import ep_init, reestimate_batch_norms
from brevitas_axe.run.search_widths import Training, search_widths

IN_FLOAT = ("conv1", "linear")
ACCUMULATOR = 16
WIDTHS = tuple(range(2, 9))
ALLOCATED = ("ilp", "search")
FLIQS = "FLIQS"
CODE = ("methods/search", "run", "model", "accumulator.py")
QUIET = Run(progress=False)


def precision(bits: int) -> LayerPrecision:
    """The same bits for weights and inputs."""
    return LayerPrecision(bits, bits, ACCUMULATOR)


@dataclass
class Benchmark:
    """The network, its images, and everything that a run of it depends on.

    Attributes:
        model: trained in float, batch norms unfolded.
        images: in three parts.
        tuning: number of training images in an epoch.
        epochs: of every arm.
        rate: learning rate of the weights, in every arm.
        policy: options of `reinforce`.
        cost_weight: of the reward.
    """

    model: nn.Module
    images: Images
    tuning: int
    epochs: int
    rate: float
    policy: str
    cost_weight: float

    def started(self) -> nn.Module:
        """The calibrated model, with a range for every width."""
        some = self.images.calibration(500)
        model = calibrate(quantized(self.model, 4, 4, IN_FLOAT), some)
        apply_plan(model, Plan.uniform(self.names(model), precision(4)), self.example)
        fit_ranges(model, some, WIDTHS, "mse:weights=true", WIDTHS)
        return model

    @property
    def example(self) -> tuple:
        return (self.images.train[0][:1],)

    def names(self, model: nn.Module) -> list[str]:
        """Layers with widths to choose."""
        return list(layer_shapes(model, self.example, exclude=IN_FLOAT))

    def loader(self, seed: int) -> Augmented:
        images, labels = (part[: self.tuning] for part in self.images.train)
        return Augmented(images, labels, seed)

    def plan(self, arm: str, bits: int, limit: float, choices: Choices) -> Plan:
        """Uniform widths, or those of an allocator within a limit."""
        if arm not in ALLOCATED:
            return Plan.uniform(choices.layers, precision(bits))
        images, labels = (part[:256] for part in self.images.train)
        data = list(zip(images.split(64), labels.split(64), strict=True))
        budget = {"bops": limit}
        options: dict[str, Any] = {"exclude": IN_FLOAT, "run": QUIET}
        return allocate(self.started(), data, budget, choices, allocator=arm, **options).plan

    def run(self, arm: str, bits: int, seed: int) -> dict:
        """Accuracy and cost of one arm, or recorded."""
        key = {
            "arm": arm,
            "bits": bits,
            "seed": seed,
            "settings": [self.tuning, self.epochs, self.rate, self.policy, self.cost_weight],
            "images": [len(labels) for _, labels in vars(self.images).values()],
            "model": model_fingerprint(self.model),
            "torch": torch.__version__,
            "brevitas": brevitas.__version__,
            "code": solver_fingerprint(CODE),
        }
        return recorded("fliqs", key, lambda: self._run(arm, bits, seed))

    def _run(self, arm: str, bits: int, seed: int) -> dict:
        start = time.perf_counter()
        model = self.started()
        shapes = layer_shapes(model, self.example, exclude=IN_FLOAT)
        choices = Choices(dict.fromkeys(shapes, tuple(map(precision, WIDTHS))))
        limit = total_cost(bops, Plan.uniform(shapes, precision(bits)), shapes)
        found: dict[str, Any] = {"entropy": None}
        if arm == FLIQS:
            training = Training(self.epochs, self.rate, cost_weight=self.cost_weight, seed=seed)
            searched = search_widths(
                model,
                self.loader(seed),
                {"bops": limit},
                choices,
                searcher=self.policy,
                training=training,
                exclude=IN_FLOAT,
                run=QUIET,
            )
            result = searched.trained
            *_, last = searched.course()
            entropies = [-sum(p * math.log(p) for p in each) for each in last.values()]
            found["entropy"] = mean(entropies)
        else:
            plan = self.plan(arm, bits, limit, choices)
            ep_init(apply_plan(model, plan, self.example), self.example)
            result = finetune(
                model,
                self.loader(seed),
                epochs=self.epochs,
                learning_rate=self.rate,
                exclude=IN_FLOAT,
                seed=seed,
                progress=False,
            )
        # Widths that were drawn earlier have left their mark on the running statistics.
        reestimate_batch_norms(result.model, self.images.calibration(self.tuning))
        widths = {name: result.plan[name].weight for name in shapes}
        cost = total_cost(bops, Plan({n: result.plan[n] for n in shapes}), shapes)
        found |= {
            "accuracy": accuracy(result.model, *self.images.test),
            "cost": cost / limit,
            "proven": result.certificate.ok,
            "widths": list(widths.values()),
            "seconds": round(time.perf_counter() - start, 1),
        }
        print(f"{arm} at W{bits}A{bits}, seed {seed}: {found}", flush=True)
        return found


def table(benchmark: Benchmark, budgets: Sequence[int], seeds: Sequence[int]) -> list[dict]:
    """One row per budget and arm, means over the seeds."""
    rows = []
    for bits in budgets:
        for arm in ("uniform", *ALLOCATED, FLIQS):
            runs = [benchmark.run(arm, bits, seed) for seed in seeds]
            scores = [run["accuracy"] for run in runs]
            spread = stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else None
            rows.append(
                {
                    "bit operations of": f"W{bits}A{bits}",
                    "arm": arm,
                    "accuracy": mean(scores),
                    "standard error": spread,
                    "cost": mean(run["cost"] for run in runs),
                    "entropy": None if arm != FLIQS else mean(run["entropy"] for run in runs),
                    "proven": all(run["proven"] for run in runs),
                    "bits by layer": " ".join(map(str, runs[0]["widths"])),
                    "seconds": mean(run["seconds"] for run in runs),
                }
            )
    return rows


def main() -> None:
    """Runs every arm, prints the table and writes it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--epochs", type=int, help="of every arm; default 30, 8 with --quick")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.quick
    images = read(3200, 500) if small else read(9000, None)
    benchmark = Benchmark(
        model=trained(images, epochs=6 if small else 30),
        images=images,
        tuning=640 if small else 9000,
        epochs=arguments.epochs or (8 if small else 30),
        rate=2e-3,
        # So few steps cannot move logits far at the published rate of 0.005.
        policy="reinforce:rate=0.2" if small else "reinforce",
        cost_weight=2.0,
    )
    reference = accuracy(benchmark.model, *images.test)
    rows = table(benchmark, (4,) if small else (4, 3), (0,) if small else (0, 1, 2))
    steps = benchmark.epochs * len(benchmark.loader(0))
    print_table(f"ResNet-8, float {reference:.3f}; {steps} steps in every arm", rows)
    write_json(arguments.output, {"benchmark": "fliqs", "float": reference, "rows": rows})


if __name__ == "__main__":
    main()
