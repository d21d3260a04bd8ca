"""Widths of every layer, chosen under one accumulator width or a budget.

The harm of each choice is estimated layer by layer, from weights solved under its accumulator; an
allocator makes a plan of it. That plan and the best uniform ones are then really solved, and the
model that comes nearest to the float one on the calibration data is kept. So what is returned is
never worse, by that measure, than the uniform widths that were tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import (
    Allocator,
    Assignment,
    Beside,
    Problem,
    Quantity,
    allocate_bits,
    cost_tables,
    following,
    make_problem,
)
from brevitas_axe.methods.sensitivity import Metric, find_metric, make_choices, score
from brevitas_axe.methods.sensitivity.metrics import class_axis, outputs
from brevitas_axe.model.attention_calls import Product
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import Batch, one_sample
from brevitas_axe.model.running import float_twin, observe_inputs
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.recipe import MAX_CYCLES, Recipe
from brevitas_axe.run.checks import without_remarks
from brevitas_axe.run.logs import log_numbers
from brevitas_axe.run.request import Request, Validate
from brevitas_axe.run.result import QuantizeResult

# What every layer may get.
WEIGHT_BITS: tuple[int, ...] = (2, 3, 4, 6, 8)
INPUT_BITS: tuple[int, ...] = (2, 3, 4, 6, 8)
# A budget in percent is a share of what this costs.
REFERENCE = LayerPrecision(weight=4, input=4)
# Uniform widths that are solved: those with the least estimated harm.
_UNIFORM = 3
# Samples from which harm is estimated; the models that are solved see all.
_SAMPLES = 64
_ESTIMATED: str | Allocator = "ilp"
_SEARCHED: str | Allocator = "search:trials=4"

Solve = Callable[[Request], QuantizeResult]
Attention = Mapping[str, Mapping[str, Product]]


@without_remarks()
def best_widths(
    model: nn.Module,
    batches: Sequence[Batch],
    request: Request,
    solve: Solve,
    exclude: tuple[str, ...] = (),
    usual: int | None = None,
    reference: nn.Module | None = None,
    attention: Attention = MappingProxyType({}),
) -> QuantizeResult:
    """Chooses widths for every layer, and gives the model that was solved with them.

    Args:
        model: with quantizers, calibrated, and with a range for each of `INPUT_BITS`; it has the
            names of the layers that `solve` takes. Not modified.
        batches: of calibration.
        request: asks for it; has the accumulator, the tile, the budget and the validation function.
        solve: quantizes the model by a request with a plan.
        exclude: names of layers for which nothing is chosen.
        usual: bits that the inputs of layers have. Where others arrive, as at layers that read the
            model's own input, uniform widths keep them; None where they keep nothing.
        reference: the model to follow; None for the model without its quantizers.
        attention: products that `solve` quantizes, by the module that computes them.

    Raises:
        InvalidOption, InvalidPlan: nothing fits, or no layer is left.
    """
    choices = _choices(model, batches[0], request, exclude)
    products, choices = following(attention, choices)
    problem = _priced(model, batches[0], request, choices, exclude, products)
    some = [first_samples(batch, -(-_SAMPLES // len(batches))) for batch in batches[:_SAMPLES]]
    judge = Judge(model, batches, reference)
    state = request.run.state
    scores = score(
        model,
        [args or kwargs for args, kwargs in some],
        choices,
        metric=judge.metric,
        exclude=exclude,
        state=None if state is None else Path(state) / "scores",
        workers=request.run.workers or 1,
        progress=request.run.progress,
        function=request.recipe.function or "float",
    )
    args, kwargs = one_sample(batches[0])
    own = _of_other_widths(observe_inputs(model, find_layers(model, exclude), args, kwargs), usual)
    measured = _Measured(request, solve, judge, own)
    problem = make_problem(scores, problem.costs, problem.budgets, measured)
    uniform = [_with_inputs(problem, each, own) for each in problem.uniform]
    fitting = [each for each in dict.fromkeys(uniform) if problem.fits(each)]
    for assignment in sorted(fitting, key=problem.harm.total)[:_UNIFORM]:
        measured(problem.plan(assignment))
    found = allocate_bits(problem, _ESTIMATED if request.validate is None else _SEARCHED)
    measured(found.plan)
    usual_widths = replace(REFERENCE, accumulator=request.widths.accumulator)
    shares = shares_of(request.recipe.budget, problem.budgets, usual_widths)
    return replace(measured.best(), shares=shares)


class Judge:
    """How far a model's outputs are from the float model's, on the calibration data.

    Args:
        model: with quantizers; its float twin is what outputs should be, without a reference.
        batches: of calibration.
        reference: a model that outputs should be those of.

    Attributes:
        metric: divergence of the classes, or relative squared error where there are none.
    """

    def __init__(
        self, model: nn.Module, batches: Sequence[Batch], reference: nn.Module | None = None
    ) -> None:
        self._batches = batches
        self._wanted = outputs(float_twin(model) if reference is None else reference, batches)
        classes = self._wanted[0].shape[class_axis(self._wanted[0])]
        self.metric: Metric = find_metric("kl" if classes > 1 else "mse")

    def __call__(self, model: nn.Module) -> float:
        """The divergence; infinite where an output is not finite."""
        found = self.metric.mean(outputs(model, self._batches), self._wanted, self._batches)
        return found if math.isfinite(found) else math.inf


@dataclass
class _Measured:
    """Loss of plans, each solved once; called as a function of a plan.

    Attributes:
        request: what every plan is solved by.
        solve: does so.
        judge: tells the divergence.
        own: layers that keep a width of their own in uniform plans.
        losses: JSON of a plan → what is made least.
        rows: what was tried, for the result.
        plans: of the rows.
    """

    request: Request
    solve: Solve
    judge: Judge
    own: Mapping[str, int] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    plans: list[Plan] = field(default_factory=list)
    _best: QuantizeResult | None = None

    def __call__(self, plan: Plan) -> float:
        text = plan.to_json()
        if text in self.losses:
            return self.losses[text]
        log, run = self.request.run.log, replace(self.request.run, log=None)
        if run.state is not None:
            digest = Fingerprint({"plan": text}).hexdigest()[:16]
            run = replace(run, state=Path(run.state) / f"widths-{digest}")
        recipe = replace(self.request.recipe, widths=None, budget={})
        asked = replace(self.request, plan=plan, recipe=recipe, run=run, validate=None)
        result = self.solve(asked)
        row: dict[str, Any] = {
            "widths": _title(plan, self.own),
            "divergence": self.judge(result.model),
        }
        loss = row["divergence"]
        if self.request.validate is not None:
            row["validation"] = validation(self.request.validate, result.model)
            # What cannot be compared is worse than all else.
            loss = math.inf if math.isnan(row["validation"]) else -row["validation"]
        if run.progress:
            tqdm.write(
                ", ".join(f"{k} {v if k == 'widths' else f'{v:.4g}'}" for k, v in row.items())
            )
        if self._best is None or loss < min(self.losses.values()):
            self._best = result
        self.losses[text] = loss
        log_numbers(log, "plan", row, len(self.rows))
        self.rows.append(row)
        self.plans.append(plan)
        return loss

    def best(self) -> QuantizeResult:
        """The model with the least loss; of equals, the one that was tried first."""
        assert self._best is not None, "an allocator gives a plan or raises"
        for number, entry in enumerate(self._best.layers):
            log_numbers(self.request.run.log, "layer", entry, number)
        return replace(self._best, tried=tuple(self.rows), plans=tuple(self.plans))


def validation(validate: Validate, model: nn.Module) -> float:
    """How good a model is.

    Raises:
        InvalidOption: the function does not return a number.
    """
    value: Any = validate(model)
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidOption(
            f"validate must return a number, but it returned a {type(value).__name__}."
        ) from None


def _title(plan: Plan, own: Mapping[str, int]) -> str:
    """W4A4 for uniform widths."""
    weights = {p.weight for p in plan.layers.values()}
    kept = all(plan.layers[name].input == bits for name, bits in own.items() if name in plan.layers)
    inputs = {p.input for name, p in plan.layers.items() if name not in own}
    inputs = inputs or set(own.values())
    uniform = kept and len(weights) == len(inputs) == 1
    return f"W{weights.pop()}A{inputs.pop()}" if uniform else "by layer"


def _of_other_widths(
    seen: Mapping[str, Sequence[InputRange | None]], usual: int | None
) -> dict[str, int]:
    """Layer → bits of its input, where these are not the usual ones."""
    bits = {name: found[0].bit_width for name, found in seen.items() if found and found[0]}
    return {n: b for n, b in bits.items() if usual is not None and b != usual}


def _with_inputs(problem: Problem, assignment: Assignment, own: Mapping[str, int]) -> Assignment:
    """An assignment in which some layers get the inputs that they have, where that is a choice."""
    changed = list(assignment)
    for i, name in enumerate(problem.names):
        choice = problem.options[i][assignment[i]]
        wanted = replace(choice, input=own.get(name, choice.input))
        if wanted in problem.options[i]:
            changed[i] = problem.options[i].index(wanted)
    return tuple(changed)


def _choices(model: nn.Module, batch: Batch, request: Request, exclude: tuple[str, ...]) -> Choices:
    """What the rules leave of all pairs of widths, at the accumulator that is asked for."""
    widths, recipe = request.widths, request.recipe
    choices = make_choices(
        model,
        *one_sample(batch),
        weight=WEIGHT_BITS,
        input=INPUT_BITS,
        accumulator=(widths.accumulator,),
        tile=(widths.tile,),
        exclude=exclude,
    )
    layers = find_layers(model, exclude)
    asked = LayerPrecision(accumulator=widths.accumulator, tile=widths.tile)
    for name in choices.layers:
        ruled = recipe.ruled(name, layers[name], asked)
        if ruled is None or ruled == asked:
            continue
        options = [
            replace(
                choice,
                weight=ruled.weight or choice.weight,
                input=ruled.input or choice.input,
                accumulator=ruled.accumulator,
                tile=choice.tile if ruled.tile == asked.tile else ruled.tile,
            )
            for choice in choices.layers[name]
        ]
        choices = replace(choices, layers={**choices.layers, name: tuple(dict.fromkeys(options))})
    return choices


def _priced(
    model: nn.Module,
    batch: Batch,
    request: Request,
    choices: Choices,
    exclude: tuple[str, ...],
    products: tuple[Beside, ...],
) -> Problem:
    """Costs and limits of the budget, without harm.

    Raises:
        InvalidOption: nothing fits, which is known before any layer is scored.
    """
    harm = Quantity(tuple(np.zeros(len(options)) for options in choices.layers.values()))
    budget = dict(request.recipe.budget)
    cycles: Any = budget.pop(MAX_CYCLES, None)
    if not budget:
        return Problem(choices, harm, {}, {})
    costs, _ = cost_tables(
        {name: name for name in budget}, choices, model, one_sample(batch), exclude,
        max_cycles=None if cycles is None else int(cycles), following=products,
    )  # fmt: skip
    free = Problem(choices, harm, costs, {})
    asked = replace(REFERENCE, accumulator=request.widths.accumulator, tile=request.widths.tile)
    limits = limits_of(budget, free, asked)
    problem = replace(free, budgets=limits)
    if any(costs[name].extreme(np.min) > limit for name, limit in limits.items()):
        raise problem.refusal()
    return problem


def limits_of(
    budget: Mapping[str, float | str], problem: Problem, reference: LayerPrecision
) -> dict[str, float]:
    """Most that every cost may be.

    Args:
        budget: cost → limit, or a share such as "80%".
        problem: has these costs.
        reference: uniform widths, of whose cost shares are; a layer that may not have them counts
            with those nearest to them.
    """
    return {
        name: Recipe.share(value) * problem.costs[name].total(problem.nearest(reference))
        if isinstance(value, str)
        else float(value)
        for name, value in budget.items()
    }


def shares_of(
    budget: Mapping[str, float | str], limits: Mapping[str, float], reference: LayerPrecision
) -> tuple[dict[str, Any], ...]:
    """One row for every limit that is a share: of what, and how much that is."""
    return tuple(
        {
            "cost": name,
            "share": value,
            "of": f"W{reference.weight}A{reference.input}"
            + (f" on {reference.accumulator} bits" if reference.accumulator else ""),
            "reference": limits[name] / Recipe.share(value),
            "limit": limits[name],
        }
        for name, value in budget.items()
        if isinstance(value, str)
    )


def first_samples(batch: Batch, count: int) -> Batch:
    """So many samples of a batch at most."""
    args, kwargs = batch
    tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.dim()]
    size = len(tensors[0]) if tensors else 0

    def cut(value: Any) -> Any:
        mine = isinstance(value, Tensor) and value.dim() > 0 and len(value) == size
        return value[:count] if mine else value

    return tree_map(cut, args), tree_map(cut, kwargs)
