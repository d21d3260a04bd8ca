"""`brevitas-axe methods`: the catalogue of every method of every room."""

from __future__ import annotations

import argparse

from brevitas_axe import registry

_COLUMNS = (
    "room",
    "name",
    "options",
    "class",
    "granularity",
    "signal",
    "gradients",
    "labels",
    "export",
    "source",
)


def add(commands) -> None:
    parser = commands.add_parser(
        "methods",
        help="list all methods, with their options",
        description="Wherever a method is named, it takes options: NAME:key=value,key=value. "
        "Classes are those of the survey arXiv 2510.16805, for methods that choose widths. Export: "
        "finn, qonnx (runs in QONNX, FINN refuses) or none.",
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from brevitas_axe.cli.screen import Screen, command

    rows, screen = catalogue(), Screen(arguments)
    if arguments.markdown:
        screen.line("\n".join(markdown(rows)))
        return 0
    screen.json([dict(zip(_COLUMNS, row, strict=True)) for row in rows])
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*row)
    screen.table(table)
    screen.next(command("quantize", "--help"))
    return 0


def catalogue() -> list[tuple[str, ...]]:
    """One row per method, from its options and its facts."""
    return [
        (
            room,
            name,
            ", ".join(f"{key}={text}" for key, text in registry.option_texts(method).items()),
            method.facts.kind,
            method.facts.granularity,
            method.facts.signal,
            "yes" if method.facts.gradients else "no",
            "yes" if method.facts.labels else "no",
            method.facts.export,
            method.facts.source,
        )
        for room, methods in registry.catalogue().items()
        for name, method in methods.items()
    ]


def markdown(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table of the catalogue."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]
