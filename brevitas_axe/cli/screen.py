"""What a command prints: tables that fit the window, files, JSON, and what to do next."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

if TYPE_CHECKING:
    from brevitas_axe.run.validated import Validated

# A pipe has no window: a row stays on one line there.
_COLUMNS_OF_PIPES = 132
_LEAST_COLUMNS = 60
# Sentences and long names are folded, but not into narrower columns than this.
_FOLDED = 24
_BORDERS = 3  # of every column: a line and two spaces
_JUDGING = ("verdict", "overflow", "proven")
_GOOD, _BAD = ("fits", "yes", "impossible"), ("overflows", "not proven", "no", "possible")


class Screen:
    """Prints for one command: nothing where --quiet, and nothing but JSON where --json.

    Args:
        arguments: of the command.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._json = arguments.json
        self._silent = arguments.quiet or arguments.json

    def line(self, text: object) -> None:
        if not self._silent:
            print(text)

    def files(self, paths: Iterable[object]) -> None:
        """Names what was written, one path per line."""
        for path in paths:
            self.line(path)

    def table(self, table: Table) -> None:
        if not self._silent:
            console = Console(width=_width())
            for piece in fitted(table, console.width):
                console.print(piece)

    def next(self, *steps: str) -> None:
        """Says what to do next; of a command, its words after `brevitas-axe`, or a sentence."""
        for step in steps:
            self.line(f"next: {step}")

    def shares(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Says what a budget in per cent is a share of."""
        for row in rows:
            self.line(
                f"{row['cost']}: at most {row['limit']:,.6g}, which is {row['share']} of the "
                f"{row['reference']:,.6g} that {row['of']} takes"
            )

    def numbers(self, rows: Mapping[str, Validated]) -> None:
        """A table of how good models are; its columns are float, and accumulators."""
        table = Table(title=next((row.function for row in rows.values()), None))
        table.add_column("model")
        for heading in ("float", "unlimited", "accumulator"):
            table.add_column(heading, justify="right")
        for name, row in rows.items():
            found = (row.unquantized, row.unlimited, row.limited)
            table.add_row(Text(name), *("–" if n is None else f"{n:.6g}" for n in found))
        if rows:
            self.table(table)

    def json(self, content: Any) -> None:
        """Prints an object, or JSON that is text already, where --json was given."""
        if self._json:
            print(
                content.rstrip("\n") if isinstance(content, str) else json.dumps(content, indent=2)
            )


def command(*words: object) -> str:
    """A command as one types it; None and empty words are left out."""
    return "brevitas-axe " + " ".join(shlex.quote(str(w)) for w in words if w not in (None, ""))


def shows_progress(arguments: argparse.Namespace) -> bool:
    """Progress is for people who watch: on a terminal, and not where --quiet."""
    return not arguments.quiet and sys.stderr.isatty()


def fitted(table: Table, width: int) -> list[Table]:
    """The table with its verdicts coloured; in pieces, each with the first column, if too wide.

    Args:
        table: whose cells are text.
        width: of the window, in characters.
    """
    first, *others = table.columns
    if 1 + sum(_least(column) + _BORDERS for column in table.columns) > width:
        others.sort(key=lambda column: _plain(column.header) not in _JUDGING)  # the answer first
    pieces: list[list[Column]] = [[]]
    used = start = 1 + _least(first) + _BORDERS
    for column in others:
        needed = _least(column) + _BORDERS
        if pieces[-1] and used + needed > width:
            pieces.append([])
            used = start
        pieces[-1].append(column)
        used += needed
    made = [_piece(table, [first, *columns]) for columns in pieces]
    made[0].title, made[-1].caption = _title(table.title), table.caption
    return made


def _width() -> int:
    """Characters of a line."""
    console = Console()
    known = console.is_terminal or os.environ.get("COLUMNS")
    return max(console.width, _LEAST_COLUMNS) if known else _COLUMNS_OF_PIPES


def _least(column: Column) -> int:
    """The width below which a column is not made: of numbers the whole, of text what folds well."""
    texts = [_plain(c) for c in (column.header, *column.cells, column.footer)]
    whole = max(cell_len(line) for text in texts for line in text.splitlines() or [""])
    return whole if column.justify == "right" else min(whole, _FOLDED)


def _piece(table: Table, columns: list[Column]) -> Table:
    """A table like another one with some of its columns."""
    made = Table(show_footer=table.show_footer)
    for column in columns:
        made.add_column(
            column.header,
            column.footer,
            justify=column.justify,
            overflow="fold",
            style=column.style,
        )
    rows = zip(*(_coloured(column) for column in columns), strict=True)
    for cells, row in zip(rows, table.rows, strict=True):
        made.add_row(*cells, style=row.style)
    return made


def _coloured(column: Column) -> list[Text]:
    cells = [Text(_plain(cell)) for cell in column.cells]
    if _plain(column.header) in _JUDGING:
        for cell in cells:
            if cell.plain.startswith(_BAD):
                cell.stylize("red")
            elif cell.plain.startswith(_GOOD):
                cell.stylize("green")
    return cells


def _title(title: Any) -> Any:
    if title is None:
        return None
    text = Text(_plain(title))
    text.highlight_regex(r"NOT proven(?=$|, \d+ of \d+ dot products judged$)", "bold red")
    text.highlight_regex(r"(?<!NOT )proven$", "bold green")
    text.highlight_regex(r"proven for \d+ of \d+ dot products$", "bold yellow")
    return text


def _plain(cell: Any) -> str:
    return cell.plain if isinstance(cell, Text) else str(cell)
