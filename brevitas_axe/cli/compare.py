"""`brevitas-axe compare`: several quantized models side by side."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from brevitas_axe.cli import cost, folders
from brevitas_axe.errors import InvalidOption

if TYPE_CHECKING:
    from collections.abc import Callable

    from brevitas_axe.run.saving.save import Result


def add(commands) -> None:
    parser = commands.add_parser(
        "compare",
        help="several quantized models side by side",
        description="One row per folder: its bits, its proof, its costs for one sample, and how "
        "good it is where --validate gives a function. Exit status 0: all are proven. 1: not all.",
    )
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="written by `quantize` or `finetune`"
    )
    folders.add_model(parser)
    cost.add_costs(parser)
    parser.add_argument(
        "--validate",
        metavar="FILE.py:FUNCTION",
        help="a function of the model that returns a number, such as its accuracy",
    )
    parser.add_argument("--report", metavar="FILE", help="an HTML page: the rows, and drawings")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from rich.table import Table
    from rich.text import Text

    from brevitas_axe.cli.screen import Screen, command
    from brevitas_axe.cli.usercode import function_of

    folders.check_file(arguments.report, "--report")
    validate = None if arguments.validate is None else function_of(arguments.validate)
    for folder in arguments.folders:
        if not folders.is_folder(folder):
            raise InvalidOption(f"{folder} is no folder; give folders that `quantize` wrote.")
    names = arguments.cost or cost.USUAL
    rows = []
    for folder in arguments.folders:
        result = folders.result_of(folder, arguments)
        rows.append(_row(folder, result, names, arguments.cost is None, validate))
    if not any(row["unclaimed"] for row in rows):
        for row in rows:
            del row["unclaimed"]
    status = 0 if all(row["proven"] for row in rows) else 1
    screen = Screen(arguments)
    screen.json(rows)
    table = Table()
    for key in rows[0]:
        table.add_column(Text(key), overflow="fold", justify="left" if key == "folder" else "right")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    screen.table(table)
    if arguments.report is not None:
        # Here, for it loads matplotlib, which the rows alone do not need.
        from brevitas_axe.show.comparison import write_comparison

        write_comparison(arguments.report, rows, arguments.validate or "")
        screen.files([arguments.report])
    proven = [row for row in rows if row["proven"]]
    if proven:
        best = max(proven, key=lambda row: row.get("validation", 0))["folder"]
        screen.next(command("export", best, f"{best}/{folders.MODEL_FILE}", "--target", "qonnx"))
    else:
        screen.next(command("certify", rows[0]["folder"]))
    return status


def _row(
    folder: str,
    result: Result,
    names: Any,
    lenient: bool,
    validate: Callable[..., Any] | None,
) -> dict[str, Any]:
    """What one folder holds; None where a cost cannot be told of it."""
    from brevitas_axe.run.costs import costs_of
    from brevitas_axe.run.validated import number

    costs, _ = costs_of(result, names, lenient)
    pairs = ((p.weight_bits, p.input_bits) for p in result.plan.layers.values())
    widths = [(weight, bits) for weight, bits in pairs if weight and bits]
    row: dict[str, Any] = {
        "folder": folder,
        "layers": len(result.plan.layers),
        "mean weight bits": _mean([weight for weight, _ in widths]),
        "mean input bits": _mean([bits for _, bits in widths]),
        "widest accumulator": max(
            (e.width for e in result.certificate.judged if e.width), default=None
        ),
        "proven": result.certificate.ok,
        "unclaimed": len(result.certificate.unclaimed),
        **{name: costs[name].total if name in costs else None for name in names},
    }
    if validate is not None:
        row["validation"] = number(validate, result.model)
    return row


def _mean(values: list[Any]) -> float | None:
    return sum(values) / len(values) if values else None


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.6g}" if isinstance(value, float) else str(value)
