"""Options that more than one command has."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.plan import Plan
    from brevitas_axe.recipe import Run

Limit = TypeVar("Limit")


def add_accumulator(
    parser: argparse.ArgumentParser, required: bool = False, default: int | None = None
) -> None:
    parser.add_argument(
        "--accumulator-bits",
        type=int,
        metavar="P",
        required=required,
        default=default,
        help="width of the signed accumulator"
        + (f" (default {default})" if default is not None else ""),
    )


def add_tile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--tile-size",
        type=int,
        metavar="T",
        help="inputs per accumulator; left out, one accumulator per dot product",
    )


def add_plan(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plan", metavar="FILE", help="a plan.json with widths per layer")


def plan_of(arguments: argparse.Namespace) -> Plan | None:
    """The plan of --plan; None without one."""
    from brevitas_axe.plan import Plan

    return None if arguments.plan is None else Plan.load(arguments.plan)


def add_picked(
    parser: argparse.ArgumentParser, left_out: str = "layers for which nothing is claimed"
) -> None:
    """Layers that are chosen by patterns or by type, as in the rules of a recipe."""
    ways = "a name, a pattern such as '*.fc1', a regular expression between slashes, or a type "
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help=f"{left_out}: {ways}such as type:Conv2d; may be repeated",
    )
    parser.add_argument(
        "--include",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only these layers, written in the same way; all others are left out",
    )


def picked_rules(arguments: argparse.Namespace) -> dict[str, dict[str, bool]]:
    """What the user wrote of `add_picked`, as rules of a recipe; names of layers are none."""
    rules = {"*": {"exclude": True}} if arguments.include else {}
    rules.update((pattern, {"exclude": False}) for pattern in arguments.include)
    rules.update((pattern, {"exclude": True}) for pattern in arguments.exclude if _many(pattern))
    return rules


def named(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Layers that --exclude names in full."""
    return tuple(name for name in arguments.exclude if not _many(name))


def _many(pattern: str) -> bool:
    return pattern.startswith(("type:", "/")) or any(sign in pattern for sign in "*?[")


def left_out(arguments: argparse.Namespace, model: Any) -> tuple[str, ...]:
    """Names of all layers of a model that `add_picked` leaves out."""
    from brevitas_axe.model.layers import PLAIN_LAYERS, find_layers
    from brevitas_axe.model.prepare import has_quantizers
    from brevitas_axe.recipe import Recipe

    if not arguments.include and not arguments.exclude:
        return ()
    recipe = Recipe(rules=picked_rules(arguments))
    layers: dict[str, Any]
    if has_quantizers(model):
        layers = {**find_layers(model, named(arguments))}
    else:
        layers = {n: m for n, m in model.named_modules() if isinstance(m, PLAIN_LAYERS)}
    recipe.check_rules(layers)
    return tuple(dict.fromkeys((*named(arguments), *recipe.excluded(layers))))


def add_rules(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="PATTERN:KEY=N",
        help="widths of some layers, such as 'type:Conv2d:weight=8,input=6'; keys are weight, "
        "input, accumulator and tile; may be repeated, a later one over an earlier one",
    )


def recipe_of(arguments: argparse.Namespace) -> Any:
    """The recipe of --recipe with the rules of the command line behind its own."""
    from brevitas_axe.recipe import Recipe

    rules = {**dict(_rule(text) for text in arguments.rule), **picked_rules(arguments)}
    if not rules:
        return arguments.recipe
    recipe = Recipe.of(arguments.recipe)
    merged = dict(recipe.rules)
    for pattern, rule in rules.items():
        # Behind all others, where it counts over them.
        merged[pattern] = {**merged.pop(pattern, {}), **rule}
    return replace(recipe, rules=merged)


def _rule(text: str) -> tuple[str, dict[str, int]]:
    pattern, _, written = text.rpartition(":")
    pairs = [pair.partition("=") for pair in written.split(",")]
    if not pattern or not all(value.isdecimal() for _, _, value in pairs):
        raise InvalidOption(
            f"--rule is PATTERN:KEY=N,KEY=N, such as 'type:Conv2d:weight=8', not '{text}'."
        )
    return pattern, {key: int(value) for key, _, value in pairs}


def add_validate(parser: argparse.ArgumentParser, more: str) -> None:
    parser.add_argument(
        "--validate",
        metavar="FILE.py:FUNCTION",
        help="a function of the model that returns how good it is, larger is better; it is shown "
        f"in float, on accumulators without a limit and with theirs{more}",
    )


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Adds the recipe, and options that change it."""
    parser.add_argument(
        "--recipe",
        metavar="FILE",
        help="a recipe.yaml, or a preset: fpga, transformer, fast",
    )
    parser.add_argument(
        "--solver",
        metavar="NAME",
        help="method that finds integers, such as gpfq, gptq or qronos (default); see `methods`",
    )
    parser.add_argument(
        "--quality",
        choices=["fast", "best"],
        help="fast: the algorithm as published; best (default): far less loss, same guarantee",
    )
    parser.add_argument(
        "--act-order",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="solve the columns with the largest inputs first",
    )
    parser.add_argument(
        "--function",
        choices=["float", "quantized"],
        help="what a model with quantizers was trained to compute, without them or with them; left "
        "out, its batch norms tell",
    )
    parser.add_argument(
        "--attention",
        choices=["float", "quantized"],
        help="quantized: the attention products of a transformer's blocks multiply integers, too",
    )
    parser.add_argument(
        "--outside",
        choices=["float", "quantized"],
        help="quantized: a transformer's layers in front of and behind its blocks are, too",
    )


def recipe_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_recipe` that the user gave, as keywords of `quantize`."""
    names = ("solver", "quality", "act_order", "function", "attention", "outside")
    written = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in written.items() if value is not None}


def validation_of(arguments: argparse.Namespace) -> Any:
    """The function of --validate; None without one."""
    from brevitas_axe.cli.usercode import function_of

    return None if arguments.validate is None else function_of(arguments.validate)


def add_widths(parser: argparse.ArgumentParser) -> None:
    """Bits that are chosen layer by layer."""
    parser.add_argument(
        "--widths",
        choices=["auto"],
        help="auto: choose the bits of weights and inputs for every layer, under "
        "--accumulator-bits, --budget, or both",
    )
    parser.add_argument(
        "--budget",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="with --widths auto, most that a cost may be for one sample, or a share of what W4A4 "
        "takes, such as finn_lut=80%%; may be repeated; costs: see `methods`",
    )
    add_validate(
        parser,
        "; the model is solved once more for it. With --widths auto, widths are chosen by it",
    )


def widths_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user wrote of `add_widths`, as keywords of `quantize`."""
    written: dict[str, Any] = {}
    if arguments.widths is not None:
        written["widths"] = arguments.widths
    if arguments.budget:
        written["budget"] = budgets_of(arguments, limit)
    if arguments.validate is not None and arguments.widths is not None:
        written["validate"] = validation_of(arguments)
    return written


def budgets_of(
    arguments: argparse.Namespace, read: Callable[[str], tuple[str, Limit]]
) -> dict[str, Limit]:
    """Cost → limit, of the --budget options; `read` takes one of them apart."""
    found = dict(read(text) for text in arguments.budget)
    if len(found) < len(arguments.budget):
        raise InvalidOption("a budget is given twice; give every cost one.")
    return found


def refuse_widths(arguments: argparse.Namespace) -> None:
    """Raises InvalidOption where one of `add_widths` was written and would be ignored."""
    stray = [n for n in ("widths", "budget", "validate", "include") if getattr(arguments, n)]
    if stray:
        raise InvalidOption(
            f"--{stray[0]} does not go with --hf, whose rows tell all widths and whose measure is "
            "perplexity; leave it out."
        )


def limit(text: str) -> tuple[str, float | int | str]:
    """One budget, NAME=VALUE, as its cost and its limit."""
    name, _, value = text.rpartition("=")  # a cost's options hold the others
    for kind in (int, float):
        with suppress(ValueError):
            return name, kind(value)
    return name, value  # a share, or what the recipe refuses


def going_on(arguments: argparse.Namespace) -> bool:
    """Whether the folder of --state holds progress of an earlier run."""
    folder = None if arguments.state is None else Path(arguments.state)
    return folder is not None and folder.is_dir() and any(folder.iterdir())


def add_run(parser: argparse.ArgumentParser, state: str, workers: str) -> None:
    """Options that change no integer.

    Args:
        parser: gets --state, --workers and --log.
        state: help for the first.
        workers: help for the second.
    """
    parser.add_argument("--state", metavar="DIR", help=state)
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
    add_log(parser)


def add_log(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--log",
        metavar="KIND:PLACE",
        help="write numbers while they are found to tensorboard:FOLDER or mlflow:EXPERIMENT, "
        "either of which must be installed",
    )


def run_of(arguments: argparse.Namespace) -> Run:
    """What the user wrote of `add_run`; the command line has opened the log."""
    from brevitas_axe.cli.screen import shows_progress
    from brevitas_axe.recipe import Run

    return Run(
        state=arguments.state,
        workers=arguments.workers,
        progress=shows_progress(arguments),
        log=arguments.log,
    )
