"""The table of arms, for the terminal and for Markdown, from one list of columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

Arm = Mapping[str, Any]


def bits(value: int | None, absent: str) -> str:
    """A bit width, or what its absence means."""
    return absent if value is None else f"{value}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def accumulator(arm: Arm) -> str:
    """The width that the arm runs on, with its tile: '12', '12 × 64' or 'unlimited'."""
    width = bits(arm.get("accumulator"), "unlimited")
    return width if arm.get("tile") is None else f"{width}, tile {arm['tile']}"


def verdict(arm: Arm) -> str:
    if arm.get("overflow_free"):
        return "proven"
    return "–" if arm.get("accumulator") is None else "can overflow"


COLUMNS: Sequence[tuple[str, Callable[[Arm], str]]] = (
    ("arm", lambda arm: str(arm["name"])),
    ("weights", lambda arm: bits(arm.get("weight"), "float")),
    ("inputs", lambda arm: bits(arm.get("input"), "float")),
    ("accumulator", accumulator),
    ("accuracy", lambda arm: percent(arm.get("accuracy"))),
    ("proven width", lambda arm: bits(arm.get("proven_width"), "–")),
    ("overflow", verdict),
    ("note", lambda arm: str(arm.get("note") or "")),
)

_STYLES = {"ours": "bold green", "overflow": "red", "published": "cyan"}


def arms_table(summary: Mapping[str, Any]) -> Table:
    """A rich table with one row per arm."""
    table = Table(title=summary["title"], title_justify="left", header_style="bold")
    for index, (heading, _) in enumerate(COLUMNS):
        numeric = 1 <= index <= 5
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=numeric)
    for arm in summary.get("arms", ()):
        # Cells are plain text: a bracket in a name is not rich markup.
        table.add_row(
            *(_plain(value(arm)) for _, value in COLUMNS), style=_STYLES.get(arm.get("kind"), "")
        )
    return table


def arms_markdown(summary: Mapping[str, Any]) -> str:
    """The same rows as a Markdown table, for the README."""
    lines = [
        "| " + " | ".join(heading for heading, _ in COLUMNS) + " |",
        "|---|" + "---:|" * 5 + "---|" * (len(COLUMNS) - 6),
    ]
    for arm in summary.get("arms", ()):
        cells = [value(arm).replace("|", "\\|") for _, value in COLUMNS]
        if arm.get("kind") == "ours":
            cells[0] = f"**{cells[0]}**"
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
