"""What a run would do, before it is done: a whole run whose solver rounds to nearest and looks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from brevitas_axe.accumulator import required_bit_width, worst_case_sums
from brevitas_axe.errors import AxeError
from brevitas_axe.export.finn.prepare import findings_for_finn, made_for_finn
from brevitas_axe.methods.solvers.format_rounding import as_integers
from brevitas_axe.methods.solvers.problem import (
    LayerProblem,
    LayerSolution,
    Quality,
    expanded,
)
from brevitas_axe.methods.solvers.protocol import Solver, for_floats
from brevitas_axe.model.layers import find_unquantized
from brevitas_axe.model.minifloats import nearest_significant
from brevitas_axe.model.prepare import as_batches, has_quantizers
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import Facts, method
from brevitas_axe.run.checks import moments_bytes
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.request import requested
from brevitas_axe.run.result import BlocksResult, QuantizeResult
from brevitas_axe.run.widths import REFERENCE

# Part of a layer on which the solver is timed: rows of one tile of so many inputs.
_ROWS, _COLUMNS = 32, 512
# Copies of the model: the caller's, the quantized one, and the float one that the solver follows.
_COPIES = 3
_BITS = ("weight_bit_width", "input_bit_width")


@dataclass(frozen=True)
class LayerPreview:
    """One layer as it would be solved.

    Attributes:
        name: of the layer.
        shape: groups, rows of each, inputs of each dot product.
        weight, input: range of the integers of weights and inputs.
        tile: inputs per accumulator; None for whole dot products.
        accumulator: width P that is asked for; None for no limit.
        needed: for every row, the least P at which its weights, rounded to nearest, cannot
            overflow; in a narrower one the row would be clipped.
        seconds: that the solver may take.
    """

    name: str
    shape: tuple[int, int, int]
    weight: tuple[int, int]
    input: tuple[int, int]
    tile: int | None
    accumulator: int | None
    needed: tuple[int, ...]
    seconds: float

    @property
    def clipped(self) -> int:
        """Rows that rounding to nearest would not fit into the accumulator."""
        return sum(self.accumulator is not None and p > self.accumulator for p in self.needed)


@dataclass(frozen=True)
class Preview:
    """What a run would do.

    Attributes:
        layers: in order of solving.
        floats: layer or product that stays in float, or is left out → why.
        seconds: of the whole run, within a factor of a few.
        memory: bytes of the copies of the model, and of the largest layer's second moments.
        finn: what FINN would refuse, compute otherwise or build for some devices only; None for a
            model solved by blocks.
    """

    layers: tuple[LayerPreview, ...]
    floats: dict[str, str]
    seconds: float
    memory: int
    finn: tuple[dict[str, str], ...] | None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        rows = [{**asdict(layer), "clipped": layer.clipped} for layer in self.layers]
        return {**asdict(self), "layers": rows}


def preview(
    model: nn.Module,
    calibration: Iterable[Any],
    plan: Plan | LayerPrecision | None = None,
    recipe: Recipe | str | Path | None = None,
    *,
    exclude: Iterable[str] = (),
    **keywords: Any,
) -> Preview:
    """Looks at a model as `quantize` would solve it, on the first calibration batch.

    Everything but the solve is done, so whatever a run would refuse is refused here. Where widths
    are to be chosen, four bits stand for them.

    Args:
        model, calibration, plan, recipe, exclude, keywords: as `quantize` takes them.
    """
    batches = as_batches(calibration, model)
    request = requested(plan, recipe, exclude, Run(), keywords)
    request.check_learning()  # of the real solver, in whose place another one looks
    real = request.recipe
    solver = _Look(method("solvers", real.solver), real.quality, bool(real.act_order))
    recipe = replace(real, solver=solver, quality="fast", widths=None, budget={})
    widths = request.widths if real.widths is None else _asked(request.widths)
    given = plan if isinstance(plan, Plan) else widths
    if has_quantizers(model) and not isinstance(plan, Plan):
        given = replace(request.told, accumulator=widths.accumulator, tile=widths.tile)
    first = [args or kwargs for args, kwargs in batches[:1]]
    begun = time.perf_counter()
    bits = _BITS if isinstance(plan, Plan) else ()
    told: Any = {key: keywords[key] for key in bits if key in keywords}
    run = Run(progress=False)
    result = quantize(model, first, given, recipe, exclude=exclude, run=run, **told)
    around = time.perf_counter() - begun - solver.spent
    layers = tuple(solver.found)
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return Preview(
        layers,
        _floats(result),
        around * len(batches) + sum(layer.seconds for layer in layers),
        _COPIES * size + max((moments_bytes(*layer.shape[::2]) for layer in layers), default=0),
        None if isinstance(result, BlocksResult) else _for_finn(model, batches[:1], widths),
    )


def _asked(widths: LayerPrecision) -> LayerPrecision:
    return replace(widths, weight=REFERENCE.weight, input=REFERENCE.input)


@dataclass(frozen=True, eq=False)
class _Look:
    """A solver that notes each problem, times the real solver on a part of it, and rounds.

    Attributes:
        solver, quality, act_order: of the run that is looked at.
        found: the layers so far.
        timed: seconds that the timing took, in one element.
    """

    solver: Solver
    quality: Quality
    act_order: bool
    found: list[LayerPreview] = field(default_factory=list)
    timed: list[float] = field(default_factory=list)

    uses_float_inputs: ClassVar[bool] = False
    rounds_floats: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts("–", "layer", "none", "–", "ours")

    @property
    def spent(self) -> float:
        """Seconds of looking, which a real run does not take."""
        return sum(self.timed)

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution:
        """Integers that fit: the nearest ones, or none at all in rows that these would overflow."""
        begun = time.perf_counter()
        low, high = problem.weight_range
        ratio = problem.weight.double() / expanded(problem.scale.double(), problem)
        nearest = nearest_significant(ratio, problem.significant)
        integers = torch.minimum(torch.maximum(nearest.long(), low), high)
        needed = _needed(problem, integers)
        widths = [p for p in problem.tile_bit_widths if p is not None]
        limit = min(widths) if widths else None
        least, most = problem.input_range
        groups, rows, columns = problem.weight.shape
        self.found.append(
            LayerPreview(
                problem.name,
                (groups, rows, columns),
                (int(low.min()), int(high.max())),
                (int(least.min()), int(most.max())),
                problem.tile_size,
                limit,
                tuple(needed.flatten().tolist()),
                self._seconds(problem),
            )
        )
        if limit is not None:
            integers = integers * (needed <= limit).unsqueeze(-1).to(integers.device)
        self.timed.append(time.perf_counter() - begun)
        return LayerSolution(as_integers(problem, integers), problem.scale)

    def _seconds(self, problem: LayerProblem) -> float:
        """Seconds for the whole layer, from those for a part of it: rows × inputs²."""
        part, share = _part(problem)
        solver = self.solver if problem.significant is None else for_floats(self.solver)
        options: dict[str, Any] = {"act_order": self.act_order, "quality": self.quality}
        try:
            if not self.timed:
                solver(part, **options)  # compiles its kernels
            begun = time.perf_counter()
            solver(part, **options)
        except AxeError:  # of the part alone, such as inputs that are all zero
            return 0.0
        return share * (time.perf_counter() - begun)


def _part(problem: LayerProblem) -> tuple[LayerProblem, float]:
    """Some rows and inputs of a layer, and how many times its work the whole layer's is."""
    groups, rows, columns = problem.weight.shape
    r, k = min(rows, _ROWS), min(columns, _COLUMNS)
    g = min(groups, max(1, _ROWS // r))
    (low, high), (least, most) = problem.weight_range, problem.input_range
    widths = [p for p in problem.tile_bit_widths if p is not None]
    part = LayerProblem(
        problem.weight[:g, :r, :k].contiguous(),
        problem.hessian[:g, :k, :k].contiguous(),
        problem.tile_scale[:g, :r, 0].contiguous(),
        int(low.min()),
        int(high.max()),
        int(least.min()),
        int(most.max()),
        accumulator_bit_width=min(widths) if widths else None,
        tile_size=None if problem.tile_size is None else min(problem.tile_size, k),
        significant=problem.significant,
    )
    return part, groups * rows / (g * r) * (columns / k) ** 2


def _needed(problem: LayerProblem, integers: Tensor) -> Tensor:
    """[groups, rows] bits that hold every partial sum of every tile of a row."""
    low, high = (bound.cpu().numpy() for bound in problem.input_range)
    found = torch.zeros(integers.shape[:2], dtype=torch.int64)
    edges = problem.tile_edges
    for group, rows in enumerate(integers.cpu().numpy()):
        for start, end in pairwise(edges):
            tile = slice(start, end)
            sums = worst_case_sums(rows[:, tile], low[group, tile], high[group, tile])
            for row, (least, most) in enumerate(zip(*sums, strict=True)):
                bits = required_bit_width(least[0], most[0])
                found[group, row] = max(int(found[group, row]), bits)
    return found


def _floats(result: QuantizeResult) -> dict[str, str]:
    """What stays in float, and why."""
    certificate, found = result.certificate, {}
    for entry in certificate.entries:
        name = entry.layer or entry.name
        if entry.name in certificate.excluded and entry.proven:
            found[name] = "left out by name or by a rule"
        elif not entry.proven:
            found[name] = entry.reason
    others = getattr(result, "floats", ()) or find_unquantized(result.model)
    return {**dict.fromkeys(others, "outside of what is solved"), **found}


def _for_finn(
    model: nn.Module, batches: list[Any], widths: LayerPrecision
) -> tuple[dict[str, str], ...]:
    """Findings of the check on the model as it would be prepared for FINN."""
    try:
        if not has_quantizers(model):
            model = made_for_finn(model, batches, widths.weight_bits or 4, widths.input_bits or 8)
        found = findings_for_finn(model.eval(), batches[0], notes=True)
        # Ties are those of weights that the solve is yet to change.
        return tuple(f.to_dict() for f in found if "tie" not in (f.rule, f.severity))
    except AxeError as error:
        return ({"layer": "–", "severity": "refused", "problem": str(error), "way_out": "–"},)
