"""Short fine-tuning under P-bit accumulators: ours against Brevitas's A2Q and A2Q+.

    python benchmarks/finetuning.py [--quick] [--output FILE] [--plot PNG]

A ResNet-8, trained in float by this script and then cached; W4A4 with unsigned inputs; the first
convolution and the classifier stay in float and the batch norms are trained, in every arm alike.
Each arm starts twice: from the float weights (A2Q and A2Q+ by EP-init, ours by its own `ep_init`)
and from the weights of our post-training solution at the same P. The naive arm takes fewer weight
and input bits, until no weights of these types can overflow P bits, and trains them unconstrained.

All arms have the same schedule, AdamW with a cosine. Each point has its learning rate from the same
grid, by the accuracy of the first seed on held-out training images; the test images judge the
chosen rate only, over all seeds. A row whose integers need more than P bits, by our certificate or
by the check in `arms`, counts as failed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import brevitas
import torch
from arms import bits_needed, calibrate, model_fingerprint, quantized_layers, solver_fingerprint
from conv_quantizers import quantized
from records import add_arguments, drawing, print_table, recorded, write_json
from resnet8 import Augmented, Images, read, trained
from resnet32 import accuracy
from torch import nn

from brevitas_axe import LayerPrecision, Plan, apply_plan, certify, quantize
from brevitas_axe.run.finetune import ep_init, finetune

QUANTIZERS = {"ours": "axe", "A2Q": "a2q", "A2Q+": "a2q+"}
STARTS = ("float", "PTQ")
NAIVE, UNLIMITED = "fewer bits", "no limit"
BITS = 4
RATES = (2e-3, 8e-3)
IN_FLOAT = ("conv1", "linear")
CODE = ("methods/solvers", "run", "model", "accumulator.py")


@dataclass(frozen=True)
class Arm:
    """What is trained; accumulator_bits=None is an unlimited accumulator."""

    method: str
    start: str
    accumulator_bits: int | None
    weight_bits: int = BITS
    input_bits: int = BITS


@dataclass
class Benchmark:
    """The network, its images, and everything that a run of it depends on.

    Attributes:
        model: trained in float, batch norms unfolded.
        images: in three parts.
        calibration: number of training images that calibrate and that PTQ solves on.
        tuning: number of training images in an epoch of fine-tuning.
        epochs: of every fine-tuning.
        rates: learning rates that every arm chooses among.
        seeds: of the order and the augmentation of the images; the first one chooses the rate.
    """

    model: nn.Module
    images: Images
    calibration: int
    tuning: int
    epochs: int
    rates: Sequence[float]
    seeds: Sequence[int]
    _solved: dict[int, nn.Module] = field(default_factory=dict, repr=False)

    def started(self, arm: Arm) -> nn.Module:
        """The arm's model before the first training step."""
        bits = arm.accumulator_bits
        if bits is None or arm.method == NAIVE:
            return self._calibrated(arm)
        model = self._calibrated(arm) if arm.start == "float" else self._ptq(bits)
        example = (self.images.train[0][:1],)
        plan = Plan({name: LayerPrecision(accumulator=bits) for name in quantized_layers(model)})
        apply_plan(model, plan, args=example, quantizer=QUANTIZERS[arm.method])
        # Our PTQ result obeys our budget already, but neither A2Q's nor A2Q+'s.
        if arm.start == "float" or arm.method != "ours":
            ep_init(model, example)
        return model

    def run(self, arm: Arm, rate: float, seed: int) -> dict:
        """Held-out and test accuracy of one fine-tuning and what is proven of it, or recorded."""
        key = asdict(arm) | {
            "rate": rate,
            "seed": seed,
            "epochs": self.epochs,
            "calibration": self.calibration,
            "tuning": self.tuning,
            "images": [len(labels) for _, labels in vars(self.images).values()],
            "model": model_fingerprint(self.model),
            "torch": torch.__version__,
            "brevitas": brevitas.__version__,
            "code": solver_fingerprint(CODE),
        }
        return recorded("finetuning", key, lambda: self._run(arm, rate, seed))

    def measure(self, arms: Sequence[Arm]) -> dict:
        """One row of the table: the best of the arms at its best rate, over all seeds."""
        sweep = {
            (a, r): self.run(a, r, self.seeds[0])["held_out"] for a in arms for r in self.rates
        }
        arm, rate = max(sweep, key=lambda choice: sweep[choice])
        runs = [self.run(arm, rate, seed) for seed in self.seeds]
        scores = [run["accuracy"] for run in runs]
        fits = all(run["fits"] for run in runs)
        return asdict(arm) | {
            "rate": rate,
            "before": runs[0]["before"],
            "accuracy": mean(scores) if fits else None,
            "seeds": scores,
            "bits_needed": max(run["bits_needed"] for run in runs),
            "fits": fits,
            "seconds": mean(run["seconds"] for run in runs),
            "sweep": [
                {"weight_bits": a.weight_bits, "input_bits": a.input_bits, "rate": r, "held_out": s}
                for (a, r), s in sweep.items()
            ],
        }

    def naive(self, bits: int) -> list[Arm]:
        """The widest types, at most BITS, of which no weights overflow the accumulator."""
        layers: dict[str, Any] = quantized_layers(self._calibrated())
        longest = max(layer.weight[0].numel() for layer in layers.values())
        pairs = [
            (w, a)
            for w in range(2, BITS + 1)
            for a in range(2, BITS + 1)
            if longest * (2 ** (w - 1) - 1) * (2**a - 1) < 2 ** (bits - 1)
        ]
        widest = [
            p for p in pairs if not any(p != q and p[0] <= q[0] and p[1] <= q[1] for q in pairs)
        ]
        return [Arm(NAIVE, "float", bits, *pair) for pair in widest]

    def _calibrated(self, arm: Arm = Arm(UNLIMITED, "float", None)) -> nn.Module:
        model = quantized(self.model, arm.weight_bits, arm.input_bits, IN_FLOAT)
        return calibrate(model, self.images.calibration(self.calibration))

    def _ptq(self, bits: int) -> nn.Module:
        if bits not in self._solved:
            self._solved[bits] = quantize(
                self._calibrated(),
                self.images.calibration(self.calibration),
                accumulator_bit_width=bits,
                exclude=IN_FLOAT,
                progress=False,
            ).model
        return deepcopy(self._solved[bits])

    def _run(self, arm: Arm, rate: float, seed: int) -> dict:
        model = self.started(arm)
        start = time.perf_counter()
        result = finetune(
            model,
            Augmented(*(part[: self.tuning] for part in self.images.train), seed),
            epochs=self.epochs,
            learning_rate=rate,
            validation=lambda net: accuracy(net.eval(), *self.images.held_out),
            exclude=IN_FLOAT,
            seed=seed,
            progress=False,
        )
        seconds = time.perf_counter() - start
        tuned, example = result.model, self.images.train[0][:1]
        layers: dict[str, Any] = quantized_layers(tuned)
        for layer in layers.values():
            # A2Q's integers depend on the input; Brevitas keeps it on demand.
            layer.weight_quant.cache_inference_quant_act = True
        needed, certified, limit = bits_needed(tuned, example, None), None, arm.accumulator_bits
        if limit is not None:
            certified = certify(
                tuned, accumulator_bit_width=limit, exclude=IN_FLOAT, args=(example,)
            ).ok
        before, held_out = (result.history[i]["score"] for i in (0, result.best_epoch))
        print(f"{arm} rate {rate} seed {seed}: {held_out:.3f}, {seconds:.0f} s", flush=True)
        return {
            "before": before,
            "held_out": held_out,
            "accuracy": accuracy(tuned, *self.images.test),
            "bits_needed": needed,
            "certified": certified,
            "fits": limit is None or (needed <= limit and bool(certified)),
            "seconds": round(seconds, 1),
        }


def verdicts(rows: Sequence[dict]) -> list[dict]:
    """At every width and start, whether ours is at least as accurate as A2Q and as A2Q+."""
    found = []
    for ours in (row for row in rows if row["method"] == "ours"):
        point = {"start": ours["start"], "P": ours["accumulator_bits"]}
        rivals = {
            row["method"]: row["accuracy"] or 0.0
            for row in rows
            if row["method"] in ("A2Q", "A2Q+")
            and (row["start"], row["accumulator_bits"]) == tuple(point.values())
        }
        lead = {f"ours - {name}": (ours["accuracy"] or 0.0) - a for name, a in rivals.items()}
        found.append(point | lead | {"ours >= both": min(lead.values()) >= 0})
    return found


def show(reference: float, rows: Sequence[dict], epochs: int, images: int) -> None:
    """Prints the table and the verdicts; the accuracies are means over the seeds."""
    columns = {
        "arm": "method",
        "start": "start",
        "P": "accumulator_bits",
        "W": "weight_bits",
        "A": "input_bits",
        "rate": "rate",
        "before": "before",
        "accuracy": "accuracy",
        "bits needed": "bits_needed",
        "fits": "fits",
        "seconds": "seconds",
    }
    schedule = f"{epochs} epoch(s) of {images} images, rates {RATES}"
    title = f"ResNet-8, float {reference:.3f}; {schedule}; 'before' held out"
    table = [
        {c: row[key] for c, key in columns.items()}
        | {"lowest": min(row["seeds"]), "highest": max(row["seeds"])}
        for row in rows
    ]
    print_table(title, table)
    print_table("ours against A2Q and A2Q+, mean test accuracy", verdicts(rows))


def draw(reference: float, rows: Sequence[dict], path: Path) -> None:
    """Mean accuracy against P, with the range over the seeds."""
    colours = {"ours": "C0", "A2Q+": "C1", "A2Q": "C2", NAIVE: "C7"}
    labels = ("ResNet-8, CIFAR-10", "accumulator bits P", "top-1 accuracy")
    with drawing(path, *labels) as axes:
        axes.axhline(reference, color="black", linewidth=1, label="float")
        for row in rows:
            if row["method"] == UNLIMITED and row["accuracy"] is not None:
                label = f"W{BITS}A{BITS}, no limit"
                axes.axhline(row["accuracy"], color="black", linestyle=":", label=label)
        for method, start in [(m, s) for m in colours for s in STARTS]:
            points = [
                (row["accumulator_bits"], row["accuracy"], min(row["seeds"]), max(row["seeds"]))
                for row in rows
                if (row["method"], row["start"]) == (method, start) and row["accuracy"] is not None
            ]
            if points:
                bits, means, low, high = zip(*sorted(points), strict=True)
                errors = [
                    [m - x for m, x in zip(means, low, strict=True)],
                    [x - m for m, x in zip(means, high, strict=True)],
                ]
                style = "o-" if start == "PTQ" else "s--"
                label = f"{method}, {start} start"
                axes.errorbar(bits, means, errors, fmt=style, color=colours[method], label=label)


def main() -> None:
    """Runs every row, prints the tables, writes and draws them."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--accumulators", type=int, nargs="+", default=[14, 11, 8])
    parser.add_argument("--epochs", type=int, default=1, help="epochs of every fine-tuning")
    parser.add_argument("--images", type=int, default=3000, help="in an epoch of fine-tuning")
    parser.add_argument("--plot", type=Path, help="PNG file for the curves")
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    small = arguments.quick
    images = read(640, 250) if small else read(9000, None)
    benchmark = Benchmark(
        model=trained(images, epochs=2 if small else 30),
        images=images,
        calibration=100 if small else 500,
        tuning=640 if small else arguments.images,
        epochs=arguments.epochs,
        rates=RATES[:1] if small else RATES,
        seeds=(0,) if small else (0, 1, 2),
    )
    widths = arguments.accumulators[:2] if small else arguments.accumulators
    points = [[Arm(m, s, p)] for s in STARTS for p in widths for m in QUANTIZERS]
    points += [[Arm(UNLIMITED, "float", None)], *map(benchmark.naive, widths)]
    rows = [benchmark.measure(arms) for arms in points if arms]
    reference = accuracy(benchmark.model, *images.test)
    show(reference, rows, arguments.epochs, benchmark.tuning)
    content = {"benchmark": "finetuning", "float": reference, "rows": rows}
    write_json(arguments.output, content | {"verdicts": verdicts(rows)})
    if arguments.plot:
        draw(reference, rows, arguments.plot)


if __name__ == "__main__":
    main()
