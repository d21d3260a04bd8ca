"""`brevitas-axe allocate`: bits for every layer under budgets, written as a plan."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from brevitas_axe.cli import options
from brevitas_axe.cli.usercode import batches_of, model_of
from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import method

if TYPE_CHECKING:
    from brevitas_axe.methods.allocate import Allocation, Problem
    from brevitas_axe.methods.cost import Folding

_FRONT_POINTS = 16
_BASELINE = "uniform"  # what an allocator's front is drawn beside


def add(commands) -> None:
    parser = commands.add_parser(
        "allocate",
        help="choose bits for every layer under budgets",
        description="Scores every choice of every layer and writes the plan that fits the budgets; "
        "`brevitas-axe quantize --plan` takes it.",
    )
    parser.add_argument("model", metavar="FILE.py:FUNCTION", help="returns the torch model")
    parser.add_argument(
        "--calibration",
        required=True,
        metavar="FILE.py:FUNCTION",
        help="returns an iterable of input batches, or of (inputs, labels)",
    )
    parser.add_argument(
        "--budget",
        action="append",
        required=True,
        metavar="NAME=VALUE",
        help="most that a cost may be, for one sample; may be repeated",
    )
    parser.add_argument(
        "--choices", metavar="FILE", help="a choices.json instead of the bits below"
    )
    for name, default in (("weight", [2, 3, 4, 6, 8]), ("input", [4, 6, 8])):
        parser.add_argument(
            f"--{name}-bits",
            type=int,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{name} bits to choose from; default {' '.join(map(str, default))}",
        )
    parser.add_argument(
        "--accumulator-bits",
        type=int,
        nargs="+",
        default=[None],
        metavar="P",
        help="accumulator widths to choose from; default: unlimited",
    )
    options.add_tile(parser)
    parser.add_argument(
        "--max-cycles",
        type=int,
        metavar="N",
        help="fold every layer to at most N clock cycles per sample, for FINN's costs; left out, "
        "one multiplication at a time",
    )
    for what, default in (("scorer", "local"), ("allocator", "ilp")):
        parser.add_argument(
            f"--{what}",
            default=default,
            metavar="NAME[:KEY=VALUE,...]",
            help=f"{what} with its options, see `brevitas-axe methods`; default {default}",
        )
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["kl"],
        metavar="NAME",
        help="kl (default), mse, cross_entropy; several for an allocator that tries them all",
    )
    parser.add_argument(
        "--target",
        type=float,
        metavar="LOSS",
        help="largest rise of the metric, for an allocator that takes a target",
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="finn, generic-int8, or the path of a specification"
    )
    parser.add_argument("--cache", metavar="DIR", help="scores are kept here")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="trials at a time")
    options.add_exclude(parser)
    parser.add_argument("--output", default="plan.json", metavar="FILE", help="default plan.json")
    parser.add_argument(
        "--report", metavar="FILE", help="an HTML page: Pareto front, bits and sensitivity by layer"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    budgets = dict(_budget(text) for text in arguments.budget)
    if len(budgets) < len(arguments.budget):
        raise InvalidOption("a budget is given twice; give every cost one.")
    _check_numbers(arguments)
    from brevitas_axe.cli.screen import console
    from brevitas_axe.methods.allocate import (
        allocate_bits,
        check_budget,
        check_groups,
        check_metrics,
        check_target,
        cost_table,
        foldings_within,
        load_backend,
        make_problem,
        output_readers,
    )
    from brevitas_axe.methods.cost import layer_shapes
    from brevitas_axe.methods.ranges import fit_ranges
    from brevitas_axe.methods.sensitivity import (
        PlanLoss,
        find_metric,
        make_case,
        make_choices,
        score,
    )
    from brevitas_axe.model.prepare import as_batches, has_quantizers, one_sample, to_brevitas
    from brevitas_axe.plan import Choices
    from brevitas_axe.show import write_allocation

    # All names are looked up before any work is done.
    models = {name: method("cost", name) for name in budgets}
    scorer = method("sensitivity", arguments.scorer)
    allocator = method("allocate", arguments.allocator)
    for name in budgets:
        check_budget(name)
    check_target(arguments.target, arguments.allocator)
    metrics = list(dict.fromkeys(arguments.metric))
    check_metrics(metrics, arguments.allocator)
    for name in metrics:
        find_metric(name)
    backend = None if arguments.backend is None else load_backend(arguments.backend)
    exclude = tuple(arguments.exclude)
    model, items = model_of(arguments.model), batches_of(arguments.calibration)
    batches = as_batches(items)
    if not has_quantizers(model):
        model = to_brevitas(model, batches, progress=True)
        fit_ranges(model, items)  # as `quantize` does for the plan
    args, kwargs = one_sample(batches[0])
    if arguments.choices is not None:
        choices = Choices.load(arguments.choices)
    else:
        choices = make_choices(
            model,
            args,
            kwargs,
            weight=arguments.weight_bits,
            input=arguments.input_bits,
            accumulator=arguments.accumulator_bits,
            tile=[arguments.tile_size],
            exclude=exclude,
        )
    check_groups(arguments.scorer, arguments.allocator, choices.layers)
    shapes = layer_shapes(model, args, kwargs, exclude)
    if backend is not None:
        choices = backend.constrain(choices, shapes, model)
    foldings = None
    if arguments.max_cycles is not None:
        foldings = foldings_within(choices, shapes, arguments.max_cycles)
    scores, *others = (
        score(
            model,
            items,
            choices,
            scorer,
            metric=metric,
            exclude=exclude,
            cache=arguments.cache,
            jobs=arguments.jobs,
            progress=True,
        )
        for metric in metrics
    )
    harms = {metric: other.harm for metric, other in zip(metrics[1:], others, strict=True)}
    scores = replace(scores, metrics={**scores.metrics, **harms})
    readers = output_readers(model, args, kwargs, exclude)
    costs = {
        name: cost_table(found, choices, shapes, readers, foldings)
        for name, found in models.items()
    }

    @cache
    def plan_loss() -> PlanLoss:
        return PlanLoss(make_case(model, items, choices, metrics[0], exclude=exclude))

    # Only some allocators measure, and what they need takes time to make.
    problem = make_problem(scores, costs, budgets, lambda plan: plan_loss()(plan), arguments.target)
    found = allocate_bits(problem, allocator)
    found.plan.save(arguments.output)
    units = {name: cost.unit for name, cost in models.items()}
    console().print(_table(found, budgets, units, foldings))
    print(arguments.output)
    if arguments.report is not None:
        swept = next(iter(budgets))
        fronts = _fronts(problem, swept, arguments.allocator)
        unit = units[swept]
        if foldings is not None:
            unit += f", every layer in at most {arguments.max_cycles} cycles"
        write_allocation(arguments.report, problem, found, fronts, swept, unit)
        print(arguments.report)
    return 0


def _fronts(problem: Problem, swept: str, allocator: str) -> dict[str, list[Allocation]]:
    """What more and less of the first budget would give, beside one precision for all layers."""
    import numpy as np

    from brevitas_axe.methods.allocate import pareto

    cost = problem.costs[swept]
    limits = np.linspace(cost.extreme(np.min), cost.extreme(np.max), _FRONT_POINTS)
    free = replace(problem, target=None, measure=None)
    return {
        name: pareto(free, swept, limits, name) for name in dict.fromkeys((allocator, _BASELINE))
    }


def _budget(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")  # a cost's options hold the others
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or math.isnan(number):
        raise InvalidOption(
            f"a budget is NAME=VALUE with a number, such as bops=1e9, not '{text}'."
        )
    return name, number


def _check_numbers(arguments: argparse.Namespace) -> None:
    """Refuses values that mean nothing, before any work is done."""
    if arguments.jobs == 0:
        raise InvalidOption("--jobs 0 would run nothing; give 1 or more, or -1 for all cores.")
    if arguments.target is not None and math.isnan(arguments.target):
        raise InvalidOption("--target is not a number; give the largest rise of the metric.")
    if arguments.max_cycles is not None and arguments.max_cycles < 1:
        raise InvalidOption(f"--max-cycles must be at least 1, not {arguments.max_cycles}.")


def _table(
    found: Allocation,
    budgets: dict[str, float],
    units: dict[str, str],
    foldings: Mapping[str, Folding] | None,
):
    from rich.table import Table

    spent = "; ".join(
        f"{name} {found.costs[name]:.6g} of {limit:.6g} {units[name]}"
        for name, limit in budgets.items()
    )
    folded = () if foldings is None else ("PE", "SIMD")
    table = Table("layer", "weight", "input", "accumulator", "tile", *folded, title=spent)
    for name, choice in found.plan.layers.items():
        cells = (choice.weight, choice.input, choice.accumulator, choice.tile)
        if foldings is not None:
            cells += (foldings[name].pe, foldings[name].simd)
        table.add_row(name, *("–" if bits is None else str(bits) for bits in cells))
    return table
