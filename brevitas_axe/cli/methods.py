"""`brevitas-axe methods`: the catalogue of scorers, allocators and methods for transformers."""

from __future__ import annotations

import argparse

_COLUMNS = (
    "room",
    "name",
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
        help="list the methods that choose bits",
        description="Classes are those of the survey arXiv 2510.16805. Export: finn, qonnx (runs "
        "in QONNX, FINN refuses) or none.",
    )
    parser.add_argument("--markdown", action="store_true", help="as a Markdown table")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from rich.table import Table

    from brevitas_axe.cli.screen import console

    rows = catalogue()
    if arguments.markdown:
        print("\n".join(markdown(rows)))
        return 0
    table = Table(*_COLUMNS)
    for row in rows:
        table.add_row(*row)
    console().print(table)
    return 0


def catalogue() -> list[tuple[str, ...]]:
    """One row per method, from the facts next to its code."""
    from brevitas_axe.methods.allocate import allocators
    from brevitas_axe.methods.caches.kv_cache import kv_cache
    from brevitas_axe.methods.sensitivity import scorers
    from brevitas_axe.methods.splits.channel_split import channel_split

    transformers = {"channel_split": channel_split, "kv_cache": kv_cache}
    rooms = {"sensitivity": scorers(), "allocate": allocators(), "blocks": transformers}
    return [
        (
            room,
            name,
            method.facts.kind,
            method.facts.granularity,
            method.facts.signal,
            "yes" if method.facts.gradients else "no",
            "yes" if method.facts.labels else "no",
            method.facts.export,
            method.facts.source,
        )
        for room, methods in rooms.items()
        for name, method in methods.items()
    ]


def markdown(rows: list[tuple[str, ...]]) -> list[str]:
    """Lines of a Markdown table of the catalogue."""
    lines = [_COLUMNS, ("---",) * len(_COLUMNS), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]
