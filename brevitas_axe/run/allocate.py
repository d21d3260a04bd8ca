"""Bits for every layer under budgets: scores, costs, and an allocator between them."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.formats import Format
from brevitas_axe.methods.allocate import (
    Allocation,
    Allocator,
    Backend,
    Problem,
    allocate_bits,
    check_budget,
    check_groups,
    check_metrics,
    check_target,
    cost_tables,
    following,
    load_backend,
    make_problem,
    pareto,
)
from brevitas_axe.methods.cost import Folding, layer_shapes
from brevitas_axe.methods.ranges import USUAL_FITTER, fit_ranges_to
from brevitas_axe.methods.sensitivity import (
    Metric,
    PlanLoss,
    Scorer,
    Scores,
    find_metric,
    make_case,
    make_choices,
    score,
)
from brevitas_axe.model.attention_calls import Product
from brevitas_axe.model.experts import experts_to_linears, fused_experts
from brevitas_axe.model.own_quantizers import completed
from brevitas_axe.model.plain import check_open
from brevitas_axe.model.prepare import Batch, as_batches, has_quantizers, one_sample, to_brevitas
from brevitas_axe.model.routing import reaching_experts, routers_within
from brevitas_axe.model.stack import find_blocks
from brevitas_axe.model.trained_function import trained_function
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.recipe import Attention, Function, Recipe, Run
from brevitas_axe.registry import method
from brevitas_axe.run.block_attention import float_products
from brevitas_axe.run.logs import log_numbers
from brevitas_axe.run.widths import REFERENCE, limits_of, shares_of

# Widths offered to every layer by default.
WIDTHS: Mapping[str, Sequence[Format | None]] = {"weight": (2, 3, 4, 6, 8), "input": (4, 6, 8)}
# Widths for which ranges of a float model's inputs are fitted.
_FITTED = range(2, 9)
_OFFERED = ("weight", "input", "accumulator", "tile")

OfferedWidths = Mapping[str, Sequence[Format | None]]


@dataclass(frozen=True)
class AllocateResult(Allocation):
    """What `allocate` returns: a plan for `quantize`, and the data of the decision.

    Attributes:
        scores: harm of every choice of every layer.
        problem: what the allocator was given.
        units: cost → unit.
        allocator: the method.
        foldings: layer → its folding in hardware, if `max_cycles` was given; else None.
        shares: where a budget is a share, one row for every cost: of what, and how much that is.
    """

    scores: Scores
    problem: Problem
    units: Mapping[str, str]
    allocator: Allocator
    foldings: Mapping[str, Folding] | None = None
    shares: tuple[dict[str, Any], ...] = ()

    def front(
        self, budget: str | None = None, points: int = 16, allocator: str | Allocator | None = None
    ) -> list[Allocation]:
        """Pareto front over one budget: the best plans with more and with less of it.

        Args:
            budget: the one to sweep; None for the first.
            points: values of it, evenly from the least possible cost to the most.
            allocator: another than the one that found the plan.
        """
        swept = next(iter(self.problem.budgets)) if budget is None else budget
        if swept not in self.problem.costs:
            raise InvalidOption(
                f"there is no budget '{swept}' to sweep, only: {', '.join(self.problem.costs)}."
            )
        cost = self.problem.costs[swept]
        limits = np.linspace(cost.extreme(np.min), cost.extreme(np.max), points)
        free = replace(self.problem, target=None, measure=None)
        return pareto(free, swept, limits, self.allocator if allocator is None else allocator)


def allocate(
    model: nn.Module,
    calibration: Iterable[Any],
    budgets: Mapping[str, float | str],
    choices: Choices | OfferedWidths | None = None,
    *,
    scorer: str | Scorer = "local",
    allocator: str | Allocator = "ilp",
    metric: str | Metric | Sequence[str | Metric] = "kl",
    exclude: Iterable[str] = (),
    target: float | None = None,
    backend: str | Path | Backend | None = None,
    max_cycles: int | None = None,
    reference: LayerPrecision = REFERENCE,
    attention: Attention = "float",
    run: Run = Run(),
) -> AllocateResult:
    """Chooses bits for every layer: all budgets are met, with the least estimated harm.

    Args:
        model: a float model, or a calibrated Brevitas model; not modified.
        calibration: items as `brevitas_axe.model.prepare.as_batches` takes them; labels are kept
            for metrics and scorers that use them.
        budgets: cost → most that it may be, for one sample: {"bops": 1e9}; or a share of what the
            reference costs: {"bops": "80%"}.
        choices: what each layer may get; or widths by name ("weight", "input", "accumulator",
            "tile"), from which every combination is offered to every layer; None for `WIDTHS`.
        scorer: estimates the harm of every choice; "NAME:key=value" or the method itself.
        allocator: picks from the choices; likewise.
        metric: by which harm is measured; several for an allocator that takes them.
        exclude: names of layers to leave alone.
        target: largest rise of the metric, for allocators that take one.
        backend: hardware that takes some types only: a name or the path of its specification.
        max_cycles: fold every layer to at most so many clock cycles per sample, for costs of
            hardware; None for one multiplication at a time.
        reference: uniform widths, for budgets that are shares; on the widest accumulators that are
            offered, where it names none.
        attention: "quantized" counts the products that `quantize` makes of a float transformer's.
        run: where scores are kept, and how many trials run at a time.

    Raises:
        InvalidOption, InvalidPlan: a request that cannot be met, by its name; also where no choice
            fits the budgets.
    """
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    if run.offload is not None:
        raise InvalidOption("allocate moves no blocks, so it takes no offload folder; drop it.")
    # All names are looked up before any work is done.
    metrics = check_names(budgets, scorer, allocator, metric, target, max_cycles)
    models = {name: method("cost", name) for name in budgets}
    judge, chooser = method("sensitivity", scorer), method("allocate", allocator)
    spec = load_backend(backend) if isinstance(backend, str | Path) else backend
    check_open(model)
    items = list(calibration)
    batches = as_batches(items, model)
    call = one_sample(batches[0])
    products = _attention(model, call, attention, exclude)
    model, function, exclude = _calibrated(model, batches, run, exclude)
    choices = choices_for(model, *call, choices, exclude)
    check_groups(scorer, allocator, choices.layers)
    beside, choices = following(products, choices)
    if spec is not None:
        choices = spec.constrain(choices, layer_shapes(model, *call, exclude), model)
    costs, foldings = cost_tables(
        models, choices, model, call, exclude, max_cycles=max_cycles, following=beside
    )
    scores = _scores(model, items, choices, judge, metrics, exclude, run, function)
    measure = _measuring(model, items, choices, metrics[0], exclude, function)
    problem = make_problem(scores, costs, {}, measure, target)
    problem, shares = _limited(problem, budgets, reference)
    best = allocate_bits(problem, chooser)
    units = {name: cost.unit for name, cost in models.items()}
    return AllocateResult(
        best.plan, best.harm, best.costs, scores, problem, units, chooser, foldings, shares
    )


def _measuring(
    model: nn.Module,
    items: Sequence[Any],
    choices: Choices,
    metric: str | Metric,
    exclude: tuple[str, ...],
    function: Function,
) -> Callable[[Plan], float]:
    """The loss of a plan; built on demand, as only some allocators ask, and it takes time."""

    @cache
    def plan_loss() -> PlanLoss:
        return PlanLoss(
            make_case(model, items, choices, metric, exclude=exclude, function=function)
        )

    return lambda plan: plan_loss()(plan)


def _attention(
    model: nn.Module, call: Batch, attention: Attention, exclude: tuple[str, ...]
) -> dict[str, dict[str, Product]]:
    """Attention products that are to be quantized, of a float model.

    Raises:
        InvalidOption: the model has quantizers, or is no transformer.
        UnsupportedLayer: it does not call torch's attention function.
    """
    if attention == "float":
        return {}
    if has_quantizers(model):
        raise InvalidOption(
            "attention='quantized' is for a float transformer; products that a model with "
            "quantizers has count as they are, so leave attention out."
        )
    return float_products(model, call, tuple(find_blocks(model)), exclude)


def sensitivity(
    model: nn.Module,
    calibration: Iterable[Any],
    choices: Choices | OfferedWidths | None = None,
    *,
    scorer: str | Scorer = "local",
    metric: str | Metric = "kl",
    exclude: Iterable[str] = (),
    run: Run = Run(),
) -> Scores:
    """Harm of every choice of every layer, without an allocation.

    Args:
        model, calibration, choices, scorer, metric, exclude, run: as `allocate` takes them.
    """
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    check_scoring(scorer, [metric])
    judge = method("sensitivity", scorer)
    items = list(calibration)
    check_open(model)
    batches = as_batches(items, model)
    model, function, exclude = _calibrated(model, batches, run, exclude)
    choices = choices_for(model, *one_sample(batches[0]), choices, exclude)
    if not choices.layers:
        raise InvalidOption("there is no layer to look at; do not exclude them all.")
    return _scores(model, items, choices, judge, [metric], exclude, run, function)


def check_names(
    budgets: Mapping[str, float | str],
    scorer: str | Scorer,
    allocator: str | Allocator,
    metric: str | Metric | Sequence[str | Metric],
    target: float | None = None,
    max_cycles: int | None = None,
) -> list[str | Metric]:
    """Refuses names that do not exist and values that mean nothing, before any work is done.

    Args:
        budgets, scorer, allocator, metric, target, max_cycles: as `allocate` takes them.

    Returns:
        The metrics, once each.
    """
    if not budgets:
        raise InvalidOption("there is no budget; give at least one, such as {'bops': 1e9}.")
    if target is not None and math.isnan(target):
        raise InvalidOption("the target is not a number; give the largest rise of the metric.")
    if max_cycles is not None and max_cycles < 1:
        raise InvalidOption(f"max_cycles must be at least 1, not {max_cycles}.")
    for name, limit in budgets.items():
        check_budget(name)
        if isinstance(limit, str) and not Recipe.share(limit) > 0:
            raise InvalidOption(
                f"the budget of '{name}' must be a number, or a share such as '80%', not '{limit}'."
            )
    metrics: list[Any] = [metric] if isinstance(metric, str | Metric) else list(metric)
    check_scoring(scorer, metrics)
    check_target(target, allocator)
    if not metrics:
        raise InvalidOption("there is no metric; give one, such as 'kl'.")
    names = {each if isinstance(each, str) else each.name: each for each in metrics}
    check_metrics(names, allocator)
    return list(names.values())


def check_scoring(scorer: str | Scorer, metrics: Iterable[str | Metric]) -> None:
    """Refuses a scorer or a metric that does not exist.

    Args:
        scorer, metrics: as `allocate` takes them.
    """
    method("sensitivity", scorer)
    for each in metrics:
        if isinstance(each, str):
            find_metric(each)


def _calibrated(
    model: nn.Module, batches: Sequence[Batch], run: Run, exclude: tuple[str, ...]
) -> tuple[nn.Module, Function, tuple[str, ...]]:
    """A model with quantizers, its function, and what is left out besides what is excluded.

    Those of a float one have ranges that fit any bits. Its fused experts are linear layers, and
    every forward calls all experts with few tokens; routers stay in float.
    """
    if has_quantizers(model):
        model = completed(model, batches, exclude)
        return model, trained_function(model, batches), exclude
    if fused_experts(model):
        model = copy.deepcopy(model)
        experts_to_linears(model, exclude)
    exclude = (*exclude, *_routers(model))
    with reaching_experts(model, batches):
        quantized = to_brevitas(model, batches, progress=run.progress)
    fit_ranges_to(quantized, batches, _FITTED, USUAL_FITTER)
    return quantized, "float", exclude


def _routers(model: nn.Module) -> tuple[str, ...]:
    """Routers of a float model that is a stack of blocks."""
    try:
        return routers_within(model, find_blocks(model))
    except (InvalidOption, UnsupportedLayer):
        return ()


def _limited(
    problem: Problem, budgets: Mapping[str, float | str], reference: LayerPrecision
) -> tuple[Problem, tuple[dict[str, Any], ...]]:
    """The problem with its budgets, and of what these are shares."""
    reference = _on_the_widest(reference, problem.choices)
    limits = limits_of(budgets, problem, reference)
    return replace(problem, budgets=limits), shares_of(budgets, limits, reference)


def _on_the_widest(reference: LayerPrecision, choices: Choices) -> LayerPrecision:
    """Uniform widths on the widest accumulators that are offered, where they name none."""
    offered = {choice.accumulator for options in choices.layers.values() for choice in options}
    widths = [width for width in offered if width is not None]
    if reference.accumulator is not None or len(widths) < len(offered) or not widths:
        return reference
    return replace(reference, accumulator=max(widths))


def choices_for(
    model: nn.Module,
    args: tuple,
    kwargs: dict,
    given: Choices | OfferedWidths | None,
    exclude: tuple[str, ...],
) -> Choices:
    """The choices themselves, or every combination of widths, for a calibrated model."""
    if isinstance(given, Choices):
        return given
    widths: dict[str, Any] = dict(WIDTHS if given is None else given)
    unknown = [key for key in widths if key not in _OFFERED]
    if unknown:
        raise InvalidOption(
            f"'{unknown[0]}' is no width to choose; there are: {', '.join(_OFFERED)}."
        )
    return make_choices(model, args, kwargs, **widths, exclude=exclude)


def _scores(
    model: nn.Module,
    items: list[Any],
    choices: Choices,
    scorer: Scorer,
    metrics: Sequence[str | Metric],
    exclude: tuple[str, ...],
    run: Run,
    function: Function,
) -> Scores:
    """Scores by the first metric; harm by the others is in their `metrics`."""
    first, *others = (
        score(
            model,
            items,
            choices,
            scorer,
            metric=metric,
            exclude=exclude,
            state=run.state,
            workers=run.workers or 1,
            progress=run.progress,
            function=function,
        )
        for metric in metrics
    )
    for layer, harms in first.harm.items():
        for number, harm in enumerate(harms.tolist()):
            log_numbers(run.log, "harm", {layer: harm}, number)
    names = [metric if isinstance(metric, str) else metric.name for metric in metrics[1:]]
    harms = {name: other.harm for name, other in zip(names, others, strict=True)}
    return replace(first, metrics={**first.metrics, **harms})
