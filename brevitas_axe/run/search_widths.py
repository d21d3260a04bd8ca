"""Widths chosen while the weights are trained, which all widths share (FLIQS, arXiv 2308.03290).

Every step draws widths for all layers, trains the weights with them, and tells the searcher how
good they were and how far from the cost that is wanted. At the end the widths that the searcher
prefers are those of the model, which is not trained again. The quantizers keep the accumulator's
budget under every plan that is drawn.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from brevitas_axe.display import html_table
from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import (
    Problem,
    Quantity,
    check_budget,
    cost_tables,
)
from brevitas_axe.methods.ranges import USUAL_FITTER, fit_ranges_to
from brevitas_axe.methods.search.protocol import Configuration, RepeatingSearcher, Space
from brevitas_axe.model.apply.activations import input_sources, set_input_bits
from brevitas_axe.model.apply.switches import Switches
from brevitas_axe.model.apply.weights import make_accumulator_aware
from brevitas_axe.model.attention_products import certified
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import Batch, has_quantizers, one_sample
from brevitas_axe.model.running import copied
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.recipe import Run
from brevitas_axe.registry import method, methods
from brevitas_axe.run.allocate import OfferedWidths, choices_for
from brevitas_axe.run.finetune.balls import ep_init
from brevitas_axe.run.finetune.checkpoint import SavedRun
from brevitas_axe.run.finetune.run import FinetuneResult, accumulator_plan, first_calls, subject
from brevitas_axe.run.finetune.shared_weights import Decisions, SharedWeights, Training
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.widths import REFERENCE, limits_of

# Offered where nothing is said; the inputs of a layer have the bits of its weights.
WIDTHS: Mapping[str, tuple[int, ...]] = {"weight": tuple(range(2, 9))}
# Batches on which the range of every width is fitted.
_FITTED_ON = 4


@dataclass(frozen=True)
class WidthSearchResult:
    """What `search_widths` returns.

    Attributes:
        trained: the model with the widths that were preferred at the end, as `finetune` returns
            one, so that `save`, `export_qonnx` and `finetune` take it. Its history has, per epoch,
            loss and reward (means), cost (mean of the drawn plans over the target), learning_rate
            and seconds.
        cost: of the plan, for one sample.
        target: what it was to be.
        space: the decisions: layers joined by " + ", with the widths of each.
        asked: the plan of every step and its reward.
        searcher: that chose.
        seed: of the search.
    """

    trained: FinetuneResult
    cost: float
    target: float
    space: Space
    asked: tuple[tuple[Configuration, float], ...] = field(repr=False)
    searcher: RepeatingSearcher
    seed: int

    @property
    def model(self) -> nn.Module:
        """The trained model, in evaluation mode."""
        return self.trained.model

    @property
    def plan(self) -> Plan:
        """Its widths."""
        return self.trained.plan

    def __repr__(self) -> str:
        return (
            f"WidthSearchResult: {len(self.asked)} steps, cost {self.cost:,.6g} of a target of "
            f"{self.target:,.6g}\n  {self.trained!r}"
        )

    def _repr_html_(self) -> str:
        rows = [
            (name, self._found(name), ", ".join(values)) for name, values in self.values.items()
        ]
        title = repr(self).partition("\n")[0]
        decided = html_table(title, ("layers", "found", "offered"), rows)
        return f"{decided}\n{self.trained._repr_html_()}"

    def _found(self, decision: str) -> str:
        """The plan's widths of a decision's layers."""
        layers = decision.split(" + ")
        return " + ".join(_in_words(self.plan[n]) for n in layers if n in self.plan.layers)

    @property
    def values(self) -> dict[str, list[str]]:
        """Every decision's values in words: "W4A4 P16", layer by layer."""
        return {
            name: [" + ".join(map(_in_words, value)) for value in values]
            for name, values in self.space.decisions.items()
        }

    def course(self) -> Iterator[Mapping[str, tuple[float, ...]]]:
        """How likely each value of every decision was, in front of each step."""
        return self.searcher.course(self.space, self.asked, seed=self.seed)


def search_widths(
    model: nn.Module | QuantizeResult | FinetuneResult,
    loader: Iterable[Any],
    budget: Mapping[str, float | str],
    choices: Choices | OfferedWidths | None = None,
    *,
    searcher: str | RepeatingSearcher = "reinforce",
    training: Training = Training(),
    exclude: Iterable[str] = (),
    run: Run = Run(),
) -> WidthSearchResult:
    """Chooses widths for every layer in one run of training, near a cost.

    Args:
        model: a calibrated Brevitas model, or a result; not modified.
        loader: batches for training, as `finetune` takes them.
        budget: one cost and what it is to be for one sample: {"bops": 1e9}, or a share of what 4
            bits for all weights and inputs cost: {"bops": "80%"}. The plan comes near it; it may
            cost a little more or less.
        choices: what each layer may get; or widths by name ("weight", "input", "accumulator",
            "tile"), from which every combination is offered to every layer. Without "input", the
            inputs of a layer have the bits of its weights; without "accumulator", it keeps the
            accumulator and the tile that it has. None for `WIDTHS`.
        searcher: of those that repeat; "NAME:key=value" or the method itself.
        training: of the weights that all widths share.
        exclude: names of layers that keep their widths and stay out of the certificate.
        run: where progress is kept, so that a run that was killed continues to the same bits.

    Raises:
        InvalidOption, InvalidPlan: a request that cannot be met, by its name.
        NotProven: the model does not keep its accumulators.
        EmptyCalibration, InvalidState, NonFiniteValues: one sentence each.
    """
    chooser = _chooser(searcher, budget)
    network, recipe, names = subject(model, tuple(exclude))
    if not has_quantizers(network):
        raise InvalidOption(
            "the model has no quantizers; give a result of `quantize`, or a calibrated Brevitas "
            "model, as `brevitas_axe.model.prepare.to_brevitas` makes one."
        )
    shared = copied(network)
    modules = dict(shared.named_modules())
    known = tuple(name for name in names if name in modules)  # the others are products
    calls = first_calls(shared, loader, training.seed, _FITTED_ON)
    decisions = Decisions(_problem(shared, calls[0], budget, choices, known))
    switches = _switches(shared, calls, decisions.problem, known)
    _proof(shared, names, calls[0])  # what cannot be proven is refused before long work
    settings = (repr(chooser), dict(budget), list(names), _numbers(training))
    saved_run = None if run.state is None else _opened(run.state, settings, network, decisions)
    objective = SharedWeights(
        shared, loader, decisions, switches, training, saved_run, run.progress, run.log
    )
    before = tuple(objective.asked)
    with closing(objective):
        found = chooser(
            decisions.space, objective, objective.left, before=before, seed=training.seed
        )
        objective.finish()
    assignment = decisions.assignment(found)
    plan = decisions.problem.plan(assignment)
    switches.set(plan)
    _settle(shared, switches, plan, known, calls[0])
    proof = _proof(shared, names, calls[0])
    trained = FinetuneResult(
        shared, objective.history, proof, training.epochs, plan, recipe, names, calls[0]
    )
    cost, target = decisions.cost(assignment), decisions.target
    return WidthSearchResult(
        trained, cost, target, decisions.space, tuple(objective.asked), chooser, training.seed
    )


def _chooser(
    searcher: str | RepeatingSearcher, budget: Mapping[str, float | str]
) -> RepeatingSearcher:
    """The searcher, if it and the budget make sense here."""
    chooser: RepeatingSearcher = method("search", searcher)
    if not chooser.repeats:
        repeating = [name for name, found in methods("search").items() if found.repeats]
        raise InvalidOption(
            f"the searcher {searcher!r} asks for no plan twice, but weights in training make every "
            f"plan better; use {' or '.join(map(repr, repeating))}."
        )
    if len(budget) != 1:
        raise InvalidOption(
            f"give one cost to come near to, such as bops; {len(budget)} are given."
        )
    check_budget(next(iter(budget)))
    return chooser


def _problem(
    model: nn.Module,
    call: Batch,
    budget: Mapping[str, float | str],
    choices: Choices | OfferedWidths | None,
    exclude: tuple[str, ...],
) -> Problem:
    """The choices of a model and their cost; a problem whose budget is the target."""
    call = one_sample(call)
    if not isinstance(choices, Choices):
        choices = _offered(model, call, WIDTHS if choices is None else choices, exclude)
    [(name, _)] = budget.items()
    costs, _ = cost_tables({name: name}, choices, model, call, exclude)
    cost = costs[name]
    nothing = Quantity(tuple(np.zeros(len(options)) for options in choices.layers.values()))
    problem = Problem(choices, nothing, costs, {})
    limits = limits_of(budget, problem, REFERENCE)
    least, most = cost.extreme(np.min), cost.extreme(np.max)
    if not least <= limits[name] <= most or limits[name] <= 0:
        raise InvalidOption(
            f"no plan comes near to {name} = {limits[name]:g}: those that are offered cost from "
            f"{least:g} to {most:g}."
        )
    return replace(problem, budgets=limits)


def _offered(
    model: nn.Module, call: Batch, given: OfferedWidths, exclude: tuple[str, ...]
) -> Choices:
    """The choices that widths by name stand for."""
    widths = dict(given)
    weights = tuple(widths.get("weight", WIDTHS["weight"]))
    complete = {"input": weights, **widths, "weight": weights}
    choices = choices_for(model, *call, complete, exclude)
    choices.check_integers("one training run switches between")
    kept = accumulator_plan(model, exclude)

    def chosen(name: str, each: LayerPrecision) -> LayerPrecision:
        if "accumulator" in widths:
            return each
        return replace(each, accumulator=kept[name].accumulator, tile=each.tile or kept[name].tile)

    layers = {
        name: tuple(
            chosen(name, each) for each in offered if "input" in widths or each.weight == each.input
        )
        for name, offered in choices.layers.items()
    }
    return replace(choices, layers=layers)


def _switches(
    model: nn.Module, calls: list[Batch], problem: Problem, exclude: tuple[str, ...]
) -> Switches:
    """Switches with a range for every width, which suits the accumulator where there is one."""
    args, kwargs = calls[0]
    layers = find_layers(model, exclude)
    for name in problem.names:
        make_accumulator_aware(name, layers[name])
    offered = [choice for options in problem.options for choice in options]
    weights = sorted({c.weight_bits for c in offered if c.weight_bits is not None})
    inputs = {c.input_bits for c in offered if c.input_bits is not None}
    fit_ranges_to(model, calls, inputs, f"{USUAL_FITTER}:weights=true", weights)
    switches = Switches(model, problem.choices, input_sources(model, args, kwargs, exclude))
    widest = max((choice.accumulator or 0 for choice in offered), default=0) or None
    rungs = [
        problem.plan(problem.nearest(LayerPrecision(width, width, widest))) for width in weights
    ]
    for rung in rungs:
        switches.set(rung)
        if widest is not None and args:
            ep_init(model, args, exclude)
    switches.set(rungs[len(rungs) // 2])  # weights learn at the rate of a middle width
    return switches


def _settle(
    model: nn.Module, switches: Switches, plan: Plan, exclude: tuple[str, ...], call: Batch
) -> None:
    """Leaves an ordinary model with the plan's widths, which has seen an input."""
    switches.settle()
    modules: dict[str, Any] = dict(model.named_modules())
    for name in plan.layers:
        modules[name].weight_quant.set_input_range(None)
    set_input_bits(model.eval(), plan, *call, exclude=exclude)


def _proof(model: nn.Module, exclude: tuple[str, ...], call: Batch) -> Certificate:
    """Certificate of the accumulators that the model has now.

    Raises:
        NotProven: it does not keep them.
    """
    modules = dict(model.named_modules())
    plan = accumulator_plan(model, tuple(name for name in exclude if name in modules))
    return certified(model, plan, exclude, call).require()


def _numbers(training: Training) -> list[float | None]:
    """Those settings of training that can be compared."""
    values = (getattr(training, f.name) for f in fields(training))
    return [value for value in values if value is None or isinstance(value, int | float)]


def _opened(state: str | Path, settings: tuple, model: nn.Module, decisions: Decisions) -> SavedRun:
    """The folder of a run with these settings, which starts from this model."""
    choices = decisions.problem.choices.to_json()
    fingerprint = Fingerprint({"search_widths": settings, "choices": choices})
    fingerprint.add(model)
    return SavedRun(state, fingerprint.hexdigest())


def _in_words(precision: LayerPrecision) -> str:
    words = [f"W{precision.weight}A{precision.input}"]
    words += [f"P{precision.accumulator}"] * (precision.accumulator is not None)
    words += [f"T{precision.tile}"] * (precision.tile is not None)
    return " ".join(words)
