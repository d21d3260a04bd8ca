"""`brevitas-axe cost`: what a quantized model costs by layer, with and without its budget."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from brevitas_axe.cli import folders, options

if TYPE_CHECKING:
    from brevitas_axe.methods.cost import Breakdown

USUAL = ("finn_lut", "bops")


def add(commands) -> None:
    parser = commands.add_parser(
        "cost",
        help="what a quantized model costs, layer by layer",
        description="For one sample, one multiplication at a time. Each cost has two columns: as "
        "planned, and with the same weights and inputs on accumulators as wide as their types "
        "need.",
    )
    parser.add_argument("folder", metavar="DIR", help="written by `quantize` or `finetune`")
    folders.add_model(parser)
    add_costs(parser)
    options.add_picked(parser, "layers that are not listed, nor added up")
    parser.set_defaults(run=run)


def add_costs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cost",
        action="append",
        metavar="NAME",
        help="with options NAME:key=value, see `methods`; may be repeated; default: "
        + ", ".join(USUAL),
    )


def run(arguments: argparse.Namespace) -> int:
    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.run.costs import costs_of

    result = folders.result_of(arguments.folder, arguments)
    names = arguments.cost or USUAL
    costs, refusals = costs_of(result, names, lenient=arguments.cost is None)
    missing = set(options.left_out(arguments, result.model))
    title = f"{arguments.folder}, one sample"
    if missing:
        whole = max((len(found.layers) for found in costs.values()), default=0)
        costs = {name: found.without(missing) for name, found in costs.items()}
        title += f", {max((len(f.layers) for f in costs.values()), default=0)} of {whole} layers"
    screen = Screen(arguments)
    screen.json({name: found.to_dict() for name, found in costs.items()})
    screen.table(_table(title, costs))
    for sentence in refusals:
        screen.line(sentence)
    screen.next(command("export", arguments.folder, f"{arguments.folder}/{folders.MODEL_FILE}"))
    return 0


def _table(title: str, costs: dict[str, Breakdown]):
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_footer=True)
    table.add_column("layer", "total", overflow="fold")
    for heading in ("weight", "input", "accumulator", "without budget"):
        table.add_column(heading, justify="right")
    for name, found in costs.items():
        for heading, total in ((name, found.total), ("without budget", found.unlimited_total)):
            table.add_column(heading, f"{total:,.0f}", justify="right")
    rows = zip(*(found.layers for found in costs.values()), strict=True)
    for row in rows:
        first = row[0]
        widths = (first.precision.weight, first.precision.input, first.accumulator)
        numbers = (f"{value:,.0f}" for cost in row for value in (cost.cost, cost.unlimited))
        bits = map(str, (*widths, first.unlimited_accumulator))
        table.add_row(Text(first.layer), *bits, *numbers)
    return table
