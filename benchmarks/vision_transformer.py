r"""A trained vision transformer under few bits and narrow accumulators: what each method saves.

    python benchmarks/vision_transformer.py [--quick] [--output FILE]
    python benchmarks/vision_transformer.py --rows plain shift_scale shift_scale+noisy \
        --widths 4,4 3,3 --limits none 12 --seeds 0 1 2
    python benchmarks/vision_transformer.py --combine
    python benchmarks/vision_transformer.py --layers 0 4 8 [--seeds 0 1 2]

A row is "plain" or methods joined by "+", each with its options ("shift_scale:steps=20"), of the
rooms transforms, inputs, ranges and solvers; a method that is not installed is left out. Widths are
weight,input; a limit is the accumulator of a whole row. Each seed draws its own calibration images
from the training set; the judged images come from CIFAR-10's test set. All rows of a seed see the
same images, so differences to "plain" are paired: errors are those of the mean over the seeds.

`--combine` adds rows for the best pair and for all methods that help alone, chosen per widths,
limit and seed by the divergence on the calibration images.

`--layers` prints, for tensors of some blocks, the error of their readers on judged images that the
transforms leave, in percent of that without; inputs and weights are rounded to nearest.

The model is `vit_cifar10` of the shared data: 192 channels, 9 blocks, patches of 4, float 70.4 %.
"""

from __future__ import annotations

import argparse
import math
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations, product
from statistics import fmean, stdev

import numpy as np
import torch
import torch.nn.functional as F
from records import DATA, add_arguments, print_table, recorded, write_json
from torch import Tensor, nn

from brevitas_axe import LayerPrecision, Recipe, Run, quantize
from brevitas_axe.methods.transforms.protocol import Change, Site
from brevitas_axe.methods.transforms.rounding_error import output_error, reader_error
from brevitas_axe.methods.transforms.sites import find_sites
from brevitas_axe.model.quantizers.two_region import fitted, quantized
from brevitas_axe.model.stack import Alone, find_blocks, record_calls, with_hidden
from brevitas_axe.registry import method, methods

# Room of a method → field of the recipe.
ROOMS = {"transforms": "transforms", "inputs": "inputs", "ranges": "ranges", "solvers": "solver"}
SINGLE = (
    *("smooth", "shift_scale", "channel_clip", "noisy", "constant_token"),
    *("two_region", "lapq", "learned_rounding"),
)
PLAIN = "plain"
BATCH = 250
# Changes of the measurement itself.
VERSION = 1


class Classifier(nn.Module):
    """Images to logits."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import ViTForImageClassification

        self.vit = ViTForImageClassification.from_pretrained(
            DATA / "vit_cifar10", dtype=torch.float32
        )

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, 32, 32] to [n, 10]."""
        return self.vit(images).logits


def images_of(part: str) -> tuple[Tensor, Tensor]:
    """(normalised images [n, 3, 32, 32], labels) of the training or the judged part."""
    data = np.load(DATA / "cifar10_jpeg_subset.npz")
    x = torch.from_numpy(data[f"{part}_images"]).permute(0, 3, 1, 2).float() / 255
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    return (x - mean) / std, torch.from_numpy(data[f"{part}_labels"]).long()


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([model(part) for part in x.split(BATCH)])


def divergence(wanted: Tensor, given: Tensor) -> float:
    """Mean KL divergence of the classes, in nats."""
    return float(
        F.kl_div(
            given.log_softmax(1), wanted.log_softmax(1), reduction="batchmean", log_target=True
        )
    )


def recipe_of(row: str, quality: str = "best") -> Recipe | None:
    """The recipe of a row; None where one of its methods is not installed."""
    fields: dict = {"transforms": (), "quality": quality}
    for spec in row.split("+") if row != PLAIN else ():
        name = spec.partition(":")[0]
        room = next((room for room in ROOMS if name in methods(room)), None)
        if room is None:
            return None
        if room == "transforms":
            fields["transforms"] = (*fields["transforms"], spec)
        else:
            fields[ROOMS[room]] = spec
    stages = {spec: method("transforms", spec).stage for spec in fields["transforms"]}
    return Recipe(**{**fields, "transforms": tuple(sorted(stages, key=lambda s: stages[s]))})


class Bench:
    """The model, its data, and what was measured.

    Args:
        calibration: images of a seed.
        judged: images of the test set.
        quality: of the solver.
    """

    def __init__(self, calibration: int, judged: int, quality: str) -> None:
        self.calibration, self.judged, self.quality = calibration, judged, quality
        self.train, _ = images_of("train")
        self.x, self.labels = (part[:judged] for part in images_of("val"))
        self.model = Classifier().eval()
        self.wanted = logits_of(self.model, self.x)
        self.accuracy = self._accuracy(self.wanted)

    def _accuracy(self, logits: Tensor) -> float:
        return 100 * float((logits.argmax(1) == self.labels).float().mean())

    def images(self, seed: int) -> Tensor:
        """Calibration images of a seed."""
        drawn = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))
        return self.train[drawn[: self.calibration]]

    def measured(self, row: str, widths: tuple[int, int], limit: int | None, seed: int) -> dict:
        """Loss of accuracy and divergences of one quantized model."""
        key = {"row": row, "widths": widths, "limit": limit, "seed": seed, "version": VERSION}
        key |= {"calibration": self.calibration, "judged": self.judged, "quality": self.quality}

        def measure() -> dict:
            chosen = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(seed))[
                : self.calibration
            ]
            x, start = self.train[chosen], time.perf_counter()
            recipe = recipe_of(row, self.quality)
            assert recipe is not None
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Brevitas, about what it deprecates of itself
                result = quantize(
                    self.model,
                    list(x.split(64)),
                    LayerPrecision(*widths, accumulator=limit),
                    recipe,
                    run=Run(progress=False),
                )
            seconds = time.perf_counter() - start
            given = logits_of(result.model, self.x)
            return {
                "loss": self.accuracy - self._accuracy(given),
                "divergence": divergence(self.wanted, given),
                "calibration": divergence(logits_of(self.model, x), logits_of(result.model, x)),
                "proven": result.certificate.ok,
                "widest": max(e.width or 0 for e in result.certificate.judged),
                "seconds": seconds,
            }

        return recorded("vision_transformer", key, measure)

    def cell(
        self, name: str, rows: Mapping[int, str], widths: tuple[int, int], limit: int | None
    ) -> dict:
        """One row of the table: means over seeds, and differences to the plain row.

        Args:
            name: of the row.
            rows: seed → the methods, which may differ where they were chosen.
            widths, limit: see above.
        """
        found = {seed: self.measured(row, widths, limit, seed) for seed, row in rows.items()}
        plain = {seed: self.measured(PLAIN, widths, limit, seed) for seed in rows}
        gains = [plain[seed]["loss"] - found[seed]["loss"] for seed in rows]
        return {
            "row": name,
            "widths": f"W{widths[0]}A{widths[1]}",
            "P": "none" if limit is None else limit,
            "lost points": fmean(run["loss"] for run in found.values()),
            "±": error([run["loss"] for run in found.values()]),
            "gain": fmean(gains),
            "± gain": error(gains),
            "divergence": fmean(run["divergence"] for run in found.values()),
            "calibration": fmean(run["calibration"] for run in found.values()),
            "proven": all(run["proven"] for run in found.values()),
            "seconds": fmean(run["seconds"] for run in found.values()),
            "methods": ", ".join(dict.fromkeys(rows.values())),
        }

    def chosen(
        self, candidates: Sequence[str], widths: tuple[int, int], limit: int | None, seed: int
    ) -> dict[str, str]:
        """Best pair, and all that help, by the divergence on the calibration images."""
        alone = {row: self.measured(row, widths, limit, seed)["calibration"] for row in candidates}
        plain = self.measured(PLAIN, widths, limit, seed)["calibration"]
        helping = sorted((row for row in alone if alone[row] < plain), key=lambda r: alone[r])
        # Equalizations replace each other, and so do methods of a room that has one place.
        compatible = [pair for pair in combinations(helping[:4], 2) if together(pair)]
        scored = {
            "+".join(pair): self.measured("+".join(pair), widths, limit, seed)["calibration"]
            for pair in compatible
        }
        every: list[str] = []
        for row in helping:
            if together((*every, row)):
                every.append(row)
        return {
            "best pair": min(scored, key=lambda r: scored[r], default=PLAIN),
            "all that help": "+".join(every) or PLAIN,
        }


def place(row: str) -> tuple[str, int]:
    """Room of a method, and its stage where it is a transform: two of one place exclude another."""
    name = row.partition(":")[0]
    room = next(room for room in ROOMS if name in methods(room))
    if name == "smooth":  # it has the stage of rotations, but does what equalizations do
        return room, method(room, "shift_scale").stage
    return room, method(room, row).stage if room == "transforms" else 0


def together(rows: Iterable[str]) -> bool:
    """Whether methods can be in one recipe."""
    places = [place(row) for row in rows]
    return len(set(places)) == len(places)


def layer_errors(
    bench: Bench, blocks: Sequence[int], widths: tuple[int, int], seeds: Sequence[int]
) -> list[dict]:
    """Error of the readers of every tensor, in percent of that without a change.

    Transforms where something gives the tensor, two regions where nothing does.
    """
    names = ("shift_scale", "shift_scale:shift=false", "channel_clip", "noisy", "noisy:mode=shift")
    precision, found = LayerPrecision(*widths), dict[tuple, list[float]]()
    held = _sites(bench.model, bench.x[: bench.calibration], blocks)
    for seed in seeds:
        for key, site in _sites(bench.model, bench.images(seed), blocks).items():
            judged = replace(site, sample=held[key].sample)
            before = output_error(judged, Change(), precision)
            for name in names if site.giver else ():
                change = method("transforms", name).change(site, precision) or Change()
                after = output_error(judged, change, precision)
                found.setdefault((key, name), []).append(100 * after / before)
            if site.giver is None:
                after = two_regions_error(site, judged, precision)
                found.setdefault((key, "two_region"), []).append(100 * after / before)
    return [
        {
            "tensor": f"block {key[0]}, {key[1]}",
            "transform": name,
            "widths": f"W{widths[0]}A{widths[1]}",
            "error, %": fmean(shares),
            "±": error(shares),
        }
        for (key, name), shares in found.items()
    ]


def two_regions_error(site: Site, judged: Site, widths: LayerPrecision) -> float:
    """Error of the readers with an input in two regions, fitted to one sample, on another."""
    assert widths.input is not None
    [weight] = site.weights
    importance = weight.double().square().sum((0, 1))
    step, exponent = fitted(site.sample.double(), importance, widths.input, 4)
    x = judged.sample.double()
    return reader_error(x, quantized(x, step, widths.input, exponent) * step, weight, widths.weight)


@torch.no_grad()
def _sites(model: nn.Module, x: Tensor, blocks: Sequence[int]) -> dict[tuple[int, str], Site]:
    """(block, first reader) → site, of some blocks."""
    stack = find_blocks(model)
    hidden, calls = record_calls(model, stack, [((x,), {})])
    found, states = {}, hidden
    for index, (name, block) in enumerate(stack.items()):
        full = [with_hidden(call, state) for call, state in zip(calls[index], states, strict=True)]
        if index in blocks:
            for site in find_sites(block, full):
                found[index, site.readers[0]] = site
        alone = Alone(name, block)
        states = [alone(call, call) for call in full]
    return found


def error(values: Sequence[float]) -> float | None:
    """Standard error of a mean."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def _limit(text: str) -> int | None:
    return None if text == "none" else int(text)


def _widths(text: str) -> tuple[int, int]:
    weight, _, inputs = text.partition(",")
    return int(weight), int(inputs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser, threads=1)
    parser.add_argument("--rows", nargs="+", default=[PLAIN, *SINGLE])
    parser.add_argument("--widths", nargs="+", type=_widths, default=[(4, 4), (3, 3), (4, 8)])
    parser.add_argument("--limits", nargs="+", type=_limit, default=[None, 14, 12, 10])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--calibration", type=int, default=128, help="images of a seed")
    parser.add_argument("--judged", type=int, default=2500)
    parser.add_argument("--quality", choices=("best", "fast"), default="best")
    parser.add_argument("--layers", nargs="+", type=int, metavar="BLOCK", help="see above")
    parser.add_argument("--combine", action="store_true", help="also pairs, and all that help")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.quick:
        args.rows, args.widths, args.limits = args.rows[:2], [(4, 4)], [None]
        args.seeds, args.calibration, args.judged = [0, 1], 16, 100
    rows = [row for row in args.rows if recipe_of(row) is not None]
    bench, table = Bench(args.calibration, args.judged, args.quality), []
    if args.layers is not None:
        for widths in args.widths:
            table += layer_errors(bench, args.layers, widths, args.seeds)
        print_table("error of the readers, in percent of that without the transform", table)
        write_json(args.output, {"layers": table})
        return
    # Seed after seed, so that a run that is stopped has whole tables of fewer seeds.
    for seed, widths, limit, row in product(args.seeds, args.widths, args.limits, rows):
        found = bench.measured(row, widths, limit, seed)
        print(row, widths, limit, seed, found, flush=True)
    for widths in args.widths:
        for limit in args.limits:
            for row in rows:
                table.append(bench.cell(row, dict.fromkeys(args.seeds, row), widths, limit))
            if args.combine:
                single = [row for row in rows if row != PLAIN and "+" not in row]
                found = {s: bench.chosen(single, widths, limit, s) for s in args.seeds}
                for name in ("best pair", "all that help"):
                    each = {seed: chosen[name] for seed, chosen in found.items()}
                    table.append(bench.cell(name, each, widths, limit))
    print_table(f"vit_cifar10, float {bench.accuracy:.1f} %, {args.judged} images", table)
    write_json(args.output, {"float": bench.accuracy, "rows": table})


if __name__ == "__main__":
    main()
