"""The table of arms, for the terminal and for Markdown, from one list of columns."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

Arm = Mapping[str, Any]


def bits(value: int | str | None, absent: str) -> str:
    """A bit width or the name of a format as text; `absent` for None."""
    return absent if value is None else f"{value}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def widths(arm: Arm) -> str:
    """'W4A8', or 'float'."""
    return "float" if arm.get("weight") is None else f"W{arm['weight']}A{arm['input']}"


def accumulator(arm: Arm) -> str:
    """The width that the arm runs on, with its tile: '12' or '12, tile 64'."""
    width = bits(arm.get("accumulator"), "any")
    return width if arm.get("tile") is None else f"{width}, tile {arm['tile']}"


def overflow(arm: Arm) -> str:
    if arm.get("accumulator") is None:
        return "–"
    return "impossible" if arm.get("overflow_free") else "possible"


# Heading, cell, and whether an 80-column terminal has room for it.
COLUMNS: Sequence[tuple[str, Callable[[Arm], str], bool]] = (
    ("arm", lambda arm: str(arm["name"]), True),
    ("bits", widths, True),
    ("accumulator", accumulator, True),
    ("accuracy", lambda arm: percent(arm.get("accuracy")), True),
    ("needs", lambda arm: bits(arm.get("proven_width"), "–"), True),
    ("overflow", overflow, True),
    ("note", lambda arm: str(arm.get("note") or ""), False),
)
NUMBERS = (2, 3, 4)

_STYLES = {"ours": "bold green", "overflow": "red", "published": "cyan"}


def arms_table(summary: Mapping[str, Any]) -> Table:
    """A rich table with one row per arm."""
    title = Text(str(summary["title"]), style="bold")
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    shown = [column for column in COLUMNS if column[2]]
    for index, (heading, _, _) in enumerate(shown):
        table.add_column(heading, justify="right" if index in NUMBERS else "left")
    for arm in summary.get("arms", ()):
        # Text, not str: a bracket in a name is not rich markup.
        cells = [Text(value(arm)) for _, value, _ in shown]
        table.add_row(*cells, style=_STYLES.get(arm.get("kind") or "", ""))
    return table


def arms_markdown(summary: Mapping[str, Any]) -> str:
    """The same rows as a Markdown table, for the README."""
    rows = []
    for arm in summary.get("arms", ()):
        cells = [value(arm) for _, value, _ in COLUMNS]
        rows.append((cells, arm.get("kind") == "ours"))
    return markdown([heading for heading, _, _ in COLUMNS], rows, NUMBERS)


def markdown(
    headings: Sequence[str], rows: Iterable[tuple[Sequence[str], bool]], numbers: Collection[int]
) -> str:
    """A Markdown table from (cells, whether the first is bold); `numbers` are right-aligned."""
    lines = [
        "| " + " | ".join(headings) + " |",
        "|" + "".join("---:|" if i in numbers else "---|" for i in range(len(headings))),
    ]
    for values, bold in rows:
        cells = [value.replace("|", "\\|") for value in values]
        if bold:
            cells[0] = f"**{cells[0]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
