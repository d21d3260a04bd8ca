"""How results are displayed: a line or two in a terminal, a table in a notebook.

Rules of this file: names come from users' models and files, so everything is escaped; a model of a
thousand layers must not fill the screen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

# Rows of a table in a notebook; of the others only the number is shown.
MOST_ROWS = 100
_CELL = 'style="text-align: left"'


def cell(value: object) -> str:
    """A value as text; None is a dash, and floats have four digits."""
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def one_line(text: object) -> str:
    """Text without line breaks and other control characters, as a name in a line of a terminal."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(text))


def html_table(
    caption: str, headings: Sequence[str], rows: Iterable[Sequence[object]], most: int = MOST_ROWS
) -> str:
    """An HTML table; every text in it is escaped.

    Args:
        caption: one line above it.
        headings: one per column.
        rows: cells, as many as there are headings; see `cell`.
        most: rows that are shown.
    """
    rows = list(rows)
    lines = [f"<table><caption {_CELL}>{escape(caption)}</caption>", "<thead>"]
    lines += [_row("th", headings), "</thead><tbody>"]
    lines += [_row("td", map(cell, row)) for row in rows[:most]]
    lines.append("</tbody></table>")
    if len(rows) > most:
        lines.append(f"<p>… and {len(rows) - most} more</p>")
    return "\n".join(lines)


def _row(tag: str, cells: Iterable[str]) -> str:
    return f"<tr>{''.join(f'<{tag} {_CELL}>{escape(text)}</{tag}>' for text in cells)}</tr>"


def span(values: Iterable[int | str | None]) -> str:
    """Widths in a few words: "4", "3 to 8", "any" where none is given, "3 to 8 or any".

    Names of formats follow the numbers: "3 to 8 or e4m3".
    """
    values = list(values)
    numbers = [value for value in values if isinstance(value, int)]
    words = sorted({value for value in values if isinstance(value, str)})
    if numbers:
        low, high = min(numbers), max(numbers)
        words = [str(low) if low == high else f"{low} to {high}", *words]
    if None in values or not words:
        words.append("any")
    return " or ".join(words)
