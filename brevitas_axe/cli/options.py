"""Options that more than one command has."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

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
