"""Options that more than one command has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

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


def add_run(parser: argparse.ArgumentParser, state: str, workers: str) -> None:
    """Options that change no integer.

    Args:
        parser: gets --state and --workers.
        state: help for the first.
        workers: help for the second.
    """
    parser.add_argument("--state", metavar="DIR", help=state)
    parser.add_argument("--workers", type=int, metavar="N", help=workers)
