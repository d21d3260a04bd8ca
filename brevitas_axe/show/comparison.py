"""One page about several quantized models: a row for each, and a drawing for each number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import write_whole
from brevitas_axe.show import plots
from brevitas_axe.show.origin import origin, told
from brevitas_axe.show.parts import (
    badge,
    cell,
    document,
    drawing,
    name_cell,
    origin_line,
    paragraph,
    sentence,
    table,
)


def write_comparison(
    path: str | Path, rows: Sequence[Mapping[str, Any]], measure: str = ""
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the .html file.
        rows: one per model, with the same keys: `folder` names it, `proven` is its verdict,
            `unclaimed`, which may be missing, counts the dot products that the verdict leaves out,
            and the others are numbers, or None where one is not known.
        measure: what "validation" is measured by, if it is among the keys.

    Raises:
        InvalidOption: there is no row.
    """
    if not rows:
        raise InvalidOption("there is nothing to compare; give folders of quantized models.")
    keys = [key for key in rows[0] if key not in ("folder", "proven", "unclaimed")]
    cells = [
        [
            name_cell(str(row["folder"])),
            _verdict(row),
            *(_number(row[key]) for key in keys),
        ]
        for row in rows
    ]
    headings = ["model", "verdict", *keys]
    body = [
        origin_line(told(origin())),
        "<h2>Side by side</h2>",
        table(headings, [(row, "") for row in cells], range(2, len(headings))),
        paragraph(f"Measure of the validation: {measure}." if measure else None),
        paragraph("Costs are for one sample."),
    ]
    names = [str(row["folder"]) for row in rows]
    same = [key for key in keys if len({row[key] for row in rows}) == 1]
    if same and len(rows) > 1:
        body.append(paragraph(f"The same in all: {', '.join(same)}."))
    for key in keys:
        values = [row[key] for row in rows]
        if key not in same or len(rows) == 1:
            colours = [plots.KIND_COLOURS["ours"]]
            draw = partial(plots.groups_of_bars, names, {key: values}, colours, key)
            body += [f"<h2>{escape(key)}</h2>", drawing(draw, f"{key} of every model")]
    write_whole(path, document("Quantized models side by side", body).encode())


def _verdict(row: Mapping[str, Any]) -> str:
    """A badge, and how much it leaves out."""
    if not row["proven"]:
        return badge("not proven", False)
    left_out = row.get("unclaimed")
    return badge("proven in part" if left_out else "proven", True) + sentence(
        f"nothing is claimed of {left_out} dot products" if left_out else ""
    )


def _number(value: object) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else cell(value)
