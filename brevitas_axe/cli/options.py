"""Options that more than one command has."""

from __future__ import annotations

import argparse
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from brevitas_axe.plan import Plan


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


def add_exclude(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="NAME",
        help="a layer for which nothing is claimed; may be repeated",
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


def recipe_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of `add_recipe` that the user gave, as keywords of `quantize`."""
    names = ("solver", "quality", "act_order")
    written = {name: getattr(arguments, name) for name in names}
    return {name: value for name, value in written.items() if value is not None}


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
    parser.add_argument(
        "--validate",
        metavar="FILE.py:FUNCTION",
        help="with --widths auto, a function of the model that returns how good it is, larger is "
        "better; widths are then chosen by it",
    )


def widths_keywords(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the user wrote of `add_widths`, as keywords of `quantize`."""
    from brevitas_axe.cli.usercode import function_of

    written: dict[str, Any] = {}
    if arguments.widths is not None:
        written["widths"] = arguments.widths
    if arguments.budget:
        written["budget"] = dict(_limit(text) for text in arguments.budget)
        if len(written["budget"]) < len(arguments.budget):
            raise InvalidOption("a budget is given twice; give every cost one.")
    if arguments.validate is not None:
        written["validate"] = function_of(arguments.validate)
    return written


def refuse_widths(arguments: argparse.Namespace) -> None:
    """Raises InvalidOption where one of `add_widths` was written and would be ignored."""
    stray = [n for n in ("widths", "budget", "validate") if getattr(arguments, n)]
    if stray:
        raise InvalidOption(
            f"--{stray[0]} does not go with --hf, whose rows tell all widths; use "
            "brevitas_axe.quantize(..., widths='auto') in Python."
        )


def _limit(text: str) -> tuple[str, float | int | str]:
    name, _, value = text.rpartition("=")  # a cost's options hold the others
    for kind in (int, float):
        with suppress(ValueError):
            return name, kind(value)
    return name, value  # a share, or what the recipe refuses


def add_run(parser: argparse.ArgumentParser, state: str, workers: str) -> None:
    """Options that change no integer.

    Args:
        parser: gets --state and --workers.
        state: help for the first.
        workers: help for the second.
    """
    parser.add_argument("--state", metavar="DIR", help=state)
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
