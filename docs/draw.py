"""Puts a quickstart's table and picture into the README.

brevitas-axe quickstart && python docs/draw.py quickstart
"""

from __future__ import annotations

import json
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


if __name__ == "__main__":
    main(sys.argv[1])
