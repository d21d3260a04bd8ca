"""Puts a quickstart's table and picture into the README, and draws the tables of pages.

brevitas-axe quickstart && python docs/draw.py quickstart
python docs/draw.py    # allocation.png, from the table of allocation.md
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from brevitas_axe.files import write_whole
from brevitas_axe.show import arms_markdown, plots

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- quickstart table -->\n", "<!-- end -->\n"


def main(folder: str) -> None:
    summary = json.loads((Path(folder) / "summary.json").read_text())
    write_whole(ROOT / "docs" / "quickstart.png", plots.png(plots.accuracy_bars(summary["arms"])))
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END, 1)
    write_whole(readme, (before + BEGIN + arms_markdown(summary) + END + after).encode())


def allocation() -> None:
    """Accuracy of every allocator against the budget, as the page's table has it."""
    page = (ROOT / "docs" / "allocation.md").read_text(encoding="utf-8")
    [table] = re.findall(r"^\| budget \|.*\n(?:\|.*\n)+", page, re.MULTILINE)
    headings, _, *rows = ([c.strip() for c in r.strip("|").split("|")] for r in table.splitlines())
    budgets, *columns = zip(*rows, strict=True)
    figure, axes = plots.axes_of(plots.WIDE, 3.4)
    colours = [plots.KIND_COLOURS[k] for k in ("reference", "published", "overflow", "ours")]
    names = [heading.replace("`", "") for heading in headings[1:]]
    marks = []
    for cells, colour, mark in zip(columns, [*colours, plots.CHOSEN], "sv^oD", strict=True):
        values = [float(re.findall(r"[\d.]+", cell)[0]) for cell in cells]
        marks += axes.plot([int(b.split()[0]) for b in budgets], values, color=colour, marker=mark)
    axes.set_xlabel("budget of look-up tables, % of uniform W4A4")
    axes.set_ylabel("accuracy, %")
    axes.grid(color=plots.FAINT, linewidth=0.6)
    plots.legend(axes, marks, names)
    write_whole(ROOT / "docs" / "allocation.png", plots.png(figure))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        allocation()
