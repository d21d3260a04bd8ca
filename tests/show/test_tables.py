"""The table of arms in the terminal and in Markdown."""

from __future__ import annotations

import io

from rich.console import Console

from brevitas_axe.show import arms_markdown, arms_table

SUMMARY = {
    "title": "arms",
    "arms": [
        {"name": "float", "accuracy": 0.984, "kind": "reference"},
        {
            "name": "a|b [red]c[/red]", "weight": 4, "input": 4, "accumulator": 12, "tile": 64,
            "accuracy": 0.12, "proven_width": 16, "overflow_free": False, "kind": "overflow",
            "note": "wraps",
        },
        {
            "name": "ours", "weight": 4, "input": 4, "accumulator": 12, "accuracy": None,
            "proven_width": 12, "overflow_free": True, "kind": "ours",
        },
    ],
}  # fmt: skip


def test_terminal_table_shows_names_as_they_are() -> None:
    out = io.StringIO()
    Console(file=out, width=80).print(arms_table(SUMMARY))
    text = out.getvalue()
    assert "a|b [red]c[/red]" in text
    assert "98.4 %" in text
    assert "possible" in text
    assert "12, tile 64" in text


def test_markdown_has_one_row_per_arm_and_stays_a_table() -> None:
    lines = arms_markdown(SUMMARY).splitlines()
    assert len(lines) == 2 + len(SUMMARY["arms"])
    counts = {line.replace("\\|", "").count("|") for line in lines}
    assert len(counts) == 1
    assert "**ours**" in lines[-1]
