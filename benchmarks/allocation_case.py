"""One seed of `allocation.py`: a calibrated ResNet-32, its costs and scores, and evaluation."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import brevitas
import torch
import torch.nn.functional as F
from arms import SOLVER_FILES, calibrate, model_fingerprint, solver_fingerprint
from conv_quantizers import quantized
from records import CACHE, recorded
from resnet32 import experiment, read_images
from torch import Tensor, nn

from brevitas_axe import quantize
from brevitas_axe.export import export_qonnx
from brevitas_axe.methods.allocate import (
    Problem,
    allocate_bits,
    cost_table,
    make_problem,
    output_readers,
)
from brevitas_axe.methods.cost import choose_foldings, layer_shapes, total_cost
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.methods.sensitivity import Scores, make_choices, score
from brevitas_axe.methods.sensitivity.augmented import Augmented
from brevitas_axe.model.apply.activations import set_input_bits
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.registry import method
from brevitas_axe.run.result import QuantizeResult

IN_FLOAT = ("conv1", "linear")
MAX_CYCLES = 2**14
BATCH = 250
SOLVERS = SOLVER_FILES
# Training images from which calibration and held-out ones are drawn; the others judge on request.
POOL = 2000
# Of every row: measures on the judged images; the loss on the held-out ones, by which `search`
# chooses; and which of the judged images were classified rightly, as 0 and 1.
KEPT = (
    "accuracy",
    "agreement",
    "divergence",
    "loss",
    "lut",
    "certified",
    "exported",
    "right",
)


@dataclass(frozen=True)
class Size:
    """How much is measured: images, widths, budgets."""

    calibration: int = 100
    held_out: int = 1000
    judged: int = 2500
    pairs: int = 50
    trials: int = 6
    quality: str = "best"
    bits: tuple[int, ...] = tuple(range(2, 9))
    accumulators: tuple[int | None, ...] = (*range(8, 21), None)
    few_bits: tuple[int, ...] = (2, 3, 4)
    few_accumulators: tuple[int | None, ...] = (10, 12, None)
    shares: tuple[float, ...] = (0.6, 0.8, 1.0)


QUICK = Size(
    calibration=50,
    held_out=50,
    judged=250,
    pairs=10,
    trials=1,
    quality="fast",
    bits=(2, 4, 8),
    accumulators=(10, 14, None),
    few_bits=(2, 4),
    few_accumulators=(10, None),
    shares=(0.8,),
)


class Bench:
    """One seed: a calibrated model, its costs, and the evaluation of plans."""

    def __init__(self, size: Size, seed: int, judge: str = "val", metric: str = "kl") -> None:
        self.size, self.seed, self.judge, self.metric = size, seed, judge, metric
        self._solutions: dict[str, tuple[QuantizeResult, float]] = {}
        images, labels = read_images("train", 10_000)
        pool = images[:POOL]
        drawn = torch.randperm(len(pool), generator=torch.Generator().manual_seed(seed))
        count = size.calibration
        self.batches = list(pool[drawn[:count]].split(BATCH))
        self.held_out = pool[drawn[count : count + size.held_out]]
        self.judged = read_images("val", size.judged)
        if judge == "train":
            rest = slice(POOL, POOL + 4 * size.judged)
            self.judged = images[rest], labels[rest]
        self.source = experiment(1, 1).model
        self.model = calibrate(quantized(self.source, 8, 8, IN_FLOAT), self.batches)
        fit_ranges(self.model, self.batches, size.bits)
        self.one = (self.batches[0][:1],)
        self.shapes = layer_shapes(self.model, self.one, exclude=IN_FLOAT)
        self.readers = output_readers(self.model, self.one, exclude=IN_FLOAT)
        widest = Plan.uniform(self.shapes, LayerPrecision(8, 8))
        self.foldings = choose_foldings(self.shapes, widest, MAX_CYCLES)
        self.reference = Plan.uniform(self.shapes, LayerPrecision(4, 4))
        planned = deepcopy(self.model)
        set_input_bits(planned, self.reference, self.one, exclude=IN_FLOAT)
        self.unit = self._lut(planned, self.reference)
        self.content = {
            "model": model_fingerprint(self.model),
            "seed": seed,
            "calibration": size.calibration,
            "ranges": solver_fingerprint(("methods/ranges", "model/apply")),
            "torch": torch.__version__,
            "brevitas": brevitas.__version__,
        }

    def choices(self, bits: Sequence[int], accumulators: Sequence[int | None]) -> Choices:
        """Every combination of widths that can be built."""
        return make_choices(
            self.model,
            self.one,
            weight=bits,
            input=bits,
            accumulator=accumulators,
            exclude=IN_FLOAT,
        )

    def _lut(self, planned: nn.Module, plan: Plan) -> float:
        """What a plan costs, from the shapes of a model with its input bits."""
        shapes = layer_shapes(planned, self.one, exclude=IN_FLOAT)
        return total_cost(method("cost", "finn_lut"), plan, shapes, self.foldings)

    def problem(self, scores: Scores, share: float) -> Problem:
        """Under a share of the reference's look-up tables."""
        cost = cost_table("finn_lut", scores.choices, self.shapes, self.readers, self.foldings)
        budgets = {"finn_lut": share * self.unit}
        return make_problem(scores, {"finn_lut": cost}, budgets)

    def measured(self, problem: Problem) -> Problem:
        """The problem with plans solved and measured on the held-out images."""
        return replace(problem, measure=lambda a: self.loss(problem.plan(a)))

    def found(
        self, name: str, problem: Callable[[], Problem], share: float, allocator: Any
    ) -> dict:
        """A row, from the cache if it is there: what an allocator finds, solved and judged.

        Args:
            name: of the arm.
            problem: made only if the plan is not known.
            share: of the reference's look-up tables.
            allocator: or its registered name.
        """

        def plan() -> dict:
            return {"plan": allocate_bits(problem(), allocator).plan.to_json()}

        files = (*SOLVER_FILES, "methods", "plan.py")
        key = {
            "arm": name,
            "share": share,
            "allocator": repr(allocator),
            "size": repr(self.size),
            "code": solver_fingerprint(files),
            **self.content,
        }
        if self.metric != "kl":
            key["metric"] = self.metric
        text = recorded("allocation", key, plan)["plan"]
        return self.row(name, share, Plan.from_json(text))

    def row(self, name: str, share: float, plan: Plan) -> dict:
        """Accuracy and cost of a plan after the solve."""
        found = self.solved(plan)
        shown = {key: value for key, value in found.items() if key != "right"}
        print(f"seed {self.seed}, {name} at {share}: {shown}", flush=True)
        return {"seed": self.seed, "allocator": name, "share": share, **found}

    def loss(self, plan: Plan) -> float:
        """Divergence of a solved plan on the held-out images, from the cache if it is there."""
        key = {**self._content(plan), "only": "loss"}

        def measured() -> dict:
            found = outputs(self._quantized(plan)[0].model, self.held_out)
            return {"loss": divergence(found, self._held_out_outputs)}

        return recorded("allocation", key, measured)["loss"]

    def solved(self, plan: Plan) -> dict:
        """Results of a solved plan, from the cache if they are there."""
        key = {**self._content(plan), "exports": True, "judged": self.size.judged, "kept": KEPT}
        if self.judge != "val":
            key["judge"] = self.judge
        return recorded("allocation", key, lambda: self._solved(plan))

    def _content(self, plan: Plan) -> dict:
        """Everything that a solved plan depends on."""
        return {
            "plan": plan.to_json(),
            "held_out": self.size.held_out,
            "quality": self.size.quality,
            "cycles": MAX_CYCLES,
            "solvers": solver_fingerprint((*SOLVERS, "methods/cost", "export")),
            **self.content,
        }

    def _quantized(self, plan: Plan) -> tuple[QuantizeResult, float]:
        """The solved model and what it costs, kept in memory: a few megabytes each."""
        text = str(plan.to_json())
        if text not in self._solutions:
            planned = deepcopy(self.model)
            set_input_bits(planned, plan, self.one, exclude=IN_FLOAT)
            lut = self._lut(planned, plan)
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
            self._solutions[text] = result, lut
        return self._solutions[text]

    def _solved(self, plan: Plan) -> dict:
        result, lut = self._quantized(plan)
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore", UserWarning)
            export_qonnx(result.model, self.one, Path(folder) / "net.onnx", target="qonnx")
        images, labels = self.judged
        found, real = outputs(result.model, images), self._judged_outputs
        right = found.argmax(1) == labels
        return {
            "accuracy": right.float().mean().item(),
            "agreement": (found.argmax(1) == real.argmax(1)).float().mean().item(),
            "divergence": divergence(found, real),
            "loss": self.loss(plan),
            "lut": lut,
            "certified": result.certificate.require().ok,
            "exported": True,
            "right": "".join("01"[r] for r in right.tolist()),
        }

    @cached_property
    def _held_out_outputs(self) -> Tensor:
        return outputs(self.source, self.held_out)

    @cached_property
    def _judged_outputs(self) -> Tensor:
        return outputs(self.source, self.judged[0])

    def score(
        self, choices: Choices, scorer: Any, batches: list[Tensor], metric: str = "kl"
    ) -> Scores:
        """Scores, kept on disk by content and code."""
        code = solver_fingerprint((*SOLVERS, "methods/sensitivity"))[:12]
        cache = CACHE / "allocation" / f"scores-{code}"
        return score(
            self.model, batches, choices, scorer, metric=metric, exclude=IN_FLOAT, state=cache
        )

    @cached_property
    def joint(self) -> Scores:
        """Scores of every combination of widths, by the squared error of the logits too."""
        choices = self.choices(self.size.bits, self.size.accumulators)
        own, error = (
            self.score(choices, "local", self.batches, metric) for metric in (self.metric, "mse")
        )
        return replace(own, metrics={"mse": error.harm})

    @cached_property
    def wide(self) -> Scores:
        """Scores of the combinations without an accumulator's width."""
        kept = {
            name: [k for k, c in enumerate(options) if c.accumulator is None]
            for name, options in self.joint.choices.layers.items()
        }
        choices = {n: tuple(self.joint.choices.layers[n][k] for k in ks) for n, ks in kept.items()}
        harm = {name: self.joint.harm[name][ks] for name, ks in kept.items()}
        return Scores(Choices(choices, self.joint.choices.same_input), harm)

    @cached_property
    def decoupled(self) -> Scores:
        """The first stage by the squared error of the logits, the others by the divergence."""
        choices = self.choices(self.size.few_bits, self.size.few_accumulators)
        metrics = {m: self.score(choices, "local", self.batches, m).harm for m in ("mse", "kl")}
        first = tuple(name for name in self.shapes if name.startswith("layer1."))
        parts = {"mse": first, "kl": tuple(name for name in self.shapes if name not in first)}
        harm = {name: metrics[metric][name] for metric, names in parts.items() for name in names}
        return Scores(choices, harm, parts=parts, metrics=metrics)

    @cached_property
    def augmented(self) -> Scores:
        """Hessian traces and interactions at one precision per layer."""
        options = tuple(LayerPrecision(b, b) for b in self.size.bits)
        choices = Choices(dict.fromkeys(self.shapes, options))
        return self.score(choices, Augmented(probes=2), [self.batches[0][: self.size.pairs]])


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Tensor:
    """Logarithms of the probabilities [images, classes]."""
    return torch.cat([model(batch).log_softmax(1) for batch in images.split(BATCH)])


def divergence(found: Tensor, real: Tensor) -> float:
    """Mean Kullback-Leibler divergence of a model's outputs from the float model's."""
    return F.kl_div(found, real, reduction="batchmean", log_target=True).item()
