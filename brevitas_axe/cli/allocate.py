"""`brevitas-axe allocate`: bits for every layer under budgets, written as a plan."""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import folders, options
from brevitas_axe.cli.usercode import batches_of
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.plan import Choices, LayerPrecision
    from brevitas_axe.recipe import Run
    from brevitas_axe.run.allocate import AllocateResult, OfferedWidths
    from brevitas_axe.run.validated import Validated


def add(commands) -> None:
    parser = commands.add_parser(
        "allocate",
        help="choose bits for every layer under budgets",
        description="Scores every choice of every layer and writes the plan that fits the budgets; "
        "`brevitas-axe quantize --plan` takes it.",
    )
    folders.add_model_and_data(parser)
    parser.add_argument(
        "--budget",
        action="append",
        required=True,
        metavar="NAME=VALUE",
        help="most that a cost may be, for one sample, or a share of what --reference takes, such "
        "as finn_lut=80%%; may be repeated; costs: see `methods`",
    )
    parser.add_argument(
        "--reference",
        default="W4A4",
        metavar="WnAm",
        help="bits of weights and inputs of which budgets in per cent are shares; default W4A4",
    )
    add_choices(parser)
    parser.add_argument(
        "--max-cycles",
        type=int,
        metavar="N",
        help="fold every layer to at most N clock cycles per sample, for FINN's costs; left out, "
        "one multiplication at a time",
    )
    parser.add_argument(
        "--attention",
        choices=["float", "quantized"],
        default="float",
        help="quantized: the budgets hold the attention products of a transformer's blocks, too, "
        "which `quantize --attention quantized` makes integers",
    )
    _add_methods(parser)
    options.add_run(parser, "folder for scores", "trials at a time")
    options.add_picked(parser)
    options.add_validate(parser, "; the plan is solved twice for it, in quality fast")
    parser.add_argument("--output", default="plan.json", metavar="FILE", help="default plan.json")
    parser.add_argument(
        "--report", metavar="FILE", help="an HTML page: Pareto front, bits and sensitivity by layer"
    )
    parser.set_defaults(run=run)


def _bits_or_format(text: str) -> int | str:
    """A number of bits, or the name of a format, which is looked up when choices are made."""
    return text if text[:1] == "e" else int(text)


def add_choices(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--choices", metavar="FILE", help="a choices.json instead of the bits below"
    )
    for name, default in (("weight", [2, 3, 4, 6, 8]), ("input", [4, 6, 8])):
        parser.add_argument(
            f"--{name}-bits",
            type=_bits_or_format,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{name} bits to choose from, or floating-point formats such as e4m3; default "
            f"{' '.join(map(str, default))}",
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


def add_scorer(parser: argparse.ArgumentParser) -> None:
    _add_method(parser, "scorer", "local")


def _add_method(parser: argparse.ArgumentParser, name: str, default: str) -> None:
    parser.add_argument(
        f"--{name}",
        default=default,
        metavar="NAME",
        help=f"default {default}; with options NAME:key=value, see `methods`",
    )


def _add_methods(parser: argparse.ArgumentParser) -> None:
    add_scorer(parser)
    _add_method(parser, "allocator", "ilp")
    parser.add_argument(
        "--metric",
        nargs="+",
        default=["kl"],
        metavar="NAME",
        help="kl (default), mse, cross_entropy; several for an allocator that takes them",
    )
    parser.add_argument(
        "--target", type=float, metavar="LOSS", help="largest rise of the metric, for 'bisection'"
    )
    parser.add_argument(
        "--backend", metavar="NAME", help="finn, generic-int8, or the path of a specification"
    )


def run(arguments: argparse.Namespace) -> int:
    budgets = options.budgets_of(arguments, _budget)
    folders.check_file(arguments.report, "--report")
    folders.check_file(arguments.output, "--output")
    from brevitas_axe.cli.screen import Screen
    from brevitas_axe.run.allocate import allocate, check_names

    screen, run = Screen(arguments), options.run_of(arguments)
    reference = _reference(arguments.reference)
    validate = options.validation_of(arguments)
    # Checked before the user's own code runs, which may take long.
    names = (arguments.scorer, arguments.allocator, arguments.metric, arguments.target)
    check_names(budgets, *names, arguments.max_cycles)
    model = folders.model_from(arguments.model, arguments)
    batches = batches_of(arguments.calibration)
    if options.going_on(arguments):
        screen.line(f"scores that {arguments.state} has are taken from there")
    found = allocate(
        model,
        batches,
        budgets,
        choices_of(arguments),
        scorer=arguments.scorer,
        allocator=arguments.allocator,
        metric=arguments.metric,
        exclude=options.left_out(arguments, model),
        target=arguments.target,
        backend=arguments.backend,
        max_cycles=arguments.max_cycles,
        reference=reference,
        attention=arguments.attention,
        run=run,
    )
    found.plan.save(arguments.output)
    files = [arguments.output]
    if arguments.report is not None:
        _write_report(found, arguments)
        files.append(arguments.report)
    numbers = _numbers(arguments, validate, model, batches, found, run)
    screen.json(_content(found, files, numbers))
    screen.shares(found.shares)
    screen.table(_table(found))
    screen.numbers(numbers)
    screen.files(files)
    screen.next(_next(arguments))
    return 0


def _numbers(
    arguments: argparse.Namespace,
    validate: Any,
    model: Any,
    batches: Any,
    found: AllocateResult,
    run: Run,
) -> dict[str, Validated]:
    """How good the plan is by the user's function, as the fast solver gives it."""
    if validate is None:
        return {}
    from brevitas_axe.run.quantize import quantize
    from brevitas_axe.run.validated import validated

    run = replace(run, state=None)  # the plan is solved anew, if it changes
    attention = arguments.attention
    result = quantize(model, batches, found.plan, quality="fast", attention=attention, run=run)
    return {"plan": validated(arguments.validate, validate, model, batches, result, run)}


def _content(
    found: AllocateResult, files: list[str], numbers: dict[str, Validated]
) -> dict[str, Any]:
    """What --json prints."""
    from dataclasses import asdict

    return {
        "layers": {name: asdict(choice) for name, choice in found.plan.layers.items()},
        "costs": {
            name: {"spent": found.costs[name], "budget": limit, "unit": found.units[name]}
            for name, limit in found.problem.budgets.items()
        },
        "harm": found.harm,
        "shares": list(found.shares),
        "validation": {name: asdict(row) for name, row in numbers.items()},
        "files": files,
    }


def _next(arguments: argparse.Namespace) -> str:
    from brevitas_axe.cli.screen import command

    data = ("--calibration", arguments.calibration, "--plan", arguments.output)
    data += ("--attention", "quantized") * (arguments.attention == "quantized")
    return command("quantize", arguments.model, *folders.own_model(arguments), *data)


def _reference(text: str) -> LayerPrecision:
    """Uniform widths from text such as W4A4."""
    from brevitas_axe.plan import LayerPrecision

    match = re.fullmatch(r"W(\d+)A(\d+)", text)
    if match is None:
        raise InvalidOption(
            f"--reference is bits of weights and inputs, such as W4A4, not '{text}'."
        )
    return LayerPrecision(weight=int(match[1]), input=int(match[2]))


def choices_of(arguments: argparse.Namespace) -> Choices | OfferedWidths:
    """What the options of `add_choices` offer."""
    from brevitas_axe.plan import Choices

    if arguments.choices is not None:
        return Choices.load(arguments.choices)
    return {
        "weight": arguments.weight_bits,
        "input": arguments.input_bits,
        "accumulator": arguments.accumulator_bits,
        "tile": [arguments.tile_size],
    }


def _write_report(found: AllocateResult, arguments: argparse.Namespace) -> None:
    from brevitas_axe.registry import baselines
    from brevitas_axe.show import write_allocation

    swept = next(iter(found.problem.budgets))
    unit = found.units[swept]
    if found.foldings is not None:
        unit += f", every layer in at most {arguments.max_cycles} cycles"
    fronts = {
        name: found.front(swept, allocator=name)
        for name in dict.fromkeys((arguments.allocator, *baselines("allocate")))
    }
    write_allocation(arguments.report, found.problem, found, fronts, swept, unit)


def _budget(text: str) -> tuple[str, float | str]:
    from brevitas_axe.recipe import Recipe

    name, _, value = text.rpartition("=")  # other equal signs belong to the cost's options
    if name and Recipe.share(value) > 0:
        return name, value
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or math.isnan(number):
        raise InvalidOption(
            f"a budget is NAME=VALUE with a number or a share, such as bops=1e9 or bops=80%, not "
            f"'{text}'."
        )
    return name, number


def _table(found: AllocateResult):
    from rich.table import Table

    spent = "; ".join(
        f"{name} {found.costs[name]:.6g} of {limit:.6g} {found.units[name]}"
        for name, limit in found.problem.budgets.items()
    )
    folded = () if found.foldings is None else ("PE", "SIMD")
    table = Table("layer", "weight", "input", "accumulator", "tile", *folded, title=spent)
    for name, choice in found.plan.layers.items():
        cells = (choice.weight, choice.input, choice.accumulator, choice.tile)
        if found.foldings is not None:
            cells += (found.foldings[name].pe, found.foldings[name].simd)
        table.add_row(name, *("–" if bits is None else str(bits) for bits in cells))
    return table
