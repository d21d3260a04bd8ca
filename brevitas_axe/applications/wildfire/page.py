"""The table of all arms, as one HTML page and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from brevitas_axe.show.parts import document, paragraph, sentence, table
from brevitas_axe.show.tables import markdown

Row = Mapping[str, Any]
_TITLES = {"classifier": "Is there a fire?", "unet": "Where is it?"}
_SCORES = {
    "classifier": (("accuracy", "accuracy"), ("F1", "f1")),
    "unet": (("pixel accuracy", "mpa"), ("mIoU", "miou")),
}
_HOW_TO_READ = (
    "Scores are those of the test split, in per cent: means over the seeds, with standard errors. "
    "Size is that of the weights, and memory adds the largest input of a layer. BOPs are products "
    "times weight bits times input bits. LUT, BRAM and cycles are FINN's estimates for its HLS "
    "units, folded for the frame rate and with the accumulators that the weights need (for "
    "MVAU_rtl FINN reports 0 LUT); no hardware was built. Accumulator is the widest one that is "
    "proven necessary, with any seed. Milliseconds are ONNX Runtime's for one picture, on one "
    "thread of the CPU named below, of float32 or of 8-bit integers (QDQ); they are no other "
    "device's."
)


def page(summary: Mapping[str, Any]) -> str:
    """The report as HTML text."""
    body = [paragraph(_description(summary))]
    for task, rows in summary["rows"].items():
        headings, cells = _table(task, rows)
        kinds = ["ours" if row["kind"] == "ours" else "" for row in rows]
        html = [
            ([escape(cell) for cell in row], kind) for row, kind in zip(cells, kinds, strict=True)
        ]
        body += [f"<h2>{_TITLES[task]}</h2>", table(headings, html, range(2, len(headings)))]
    claims = ([sentence(cell.replace("`", "")) for cell in claim] for claim in _claims(summary))
    rows = [(claim, "") for claim in claims]
    body += ["<h2>What is to be shown</h2>", table(["claim", "met", "found"], rows, ())]
    body += ["<h2>How to read this page</h2>", paragraph(_HOW_TO_READ)]
    body.append(f"<footer>{escape(_environment(summary))}</footer>")
    return document(summary["title"], body)


def markdown_page(summary: Mapping[str, Any]) -> str:
    """The same as Markdown."""
    parts = [f"# {summary['title']}", _description(summary)]
    for task, rows in summary["rows"].items():
        headings, cells = _table(task, rows)
        bold = [(line, row["kind"] == "ours") for line, row in zip(cells, rows, strict=True)]
        parts += [f"## {_TITLES[task]}", markdown(headings, bold, range(2, len(headings)))]
    lines = [(claim, False) for claim in _claims(summary)]
    parts += ["## What is to be shown", markdown(["claim", "met", "found"], lines, ())]
    return "\n\n".join([*parts, _HOW_TO_READ, _environment(summary)]) + "\n"


def _description(summary: Mapping[str, Any]) -> str:
    settings = summary["settings"]
    return (
        f"Pictures: {summary['source']}; {settings['size']}×{settings['size']} pixels, "
        f"{settings['pictures']} to train on, {settings['seeds']} seeds. Narrow accumulators have "
        f"{settings['accumulator']} bits, mixed arms take {settings['budget']} of the look-up "
        f"tables of W4A4, and every layer is folded for {settings['fps']:g} frames per second at "
        f"{settings['clock']:g} MHz."
    )


def _environment(summary: Mapping[str, Any]) -> str:
    return " · ".join(f"{key} {value}" for key, value in summary["environment"].items())


def _claims(summary: Mapping[str, Any]) -> list[list[str]]:
    return [
        [found["claim"], "yes" if found["met"] else "no", found["found"]]
        for found in summary["claims"]
    ]


def _table(task: str, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    columns = [*_score_columns(task), *_COLUMNS]
    headings = ["arm", "bits", *(heading for heading, _ in columns)]
    cells = [[row["name"], row["bits"], *(cell(row) for _, cell in columns)] for row in rows]
    return headings, cells


def _score_columns(task: str) -> list[tuple[str, Callable[[Row], str]]]:
    def cell(row: Row, key: str) -> str:
        error = row.get(f"{key}_error")
        return f"{100 * row[key]:.1f}" + (f" ± {100 * error:.1f}" if error is not None else "")

    return [(name, lambda row, key=key: cell(row, key)) for name, key in _SCORES[task]]


def _number(key: str, form: str, unit: float = 1.0) -> Callable[[Row], str]:
    return lambda row: format(row[key] / unit, form) if key in row else "–"


_COLUMNS: Sequence[tuple[str, Callable[[Row], str]]] = (
    ("size, kB", _number("size", ".1f", 1e3)),
    ("memory, kB", _number("memory", ".1f", 1e3)),
    ("BOPs, 10⁶", _number("bops", ".1f", 1e6)),
    ("LUT", _number("lut", ",.0f")),
    ("BRAM", _number("bram", ".0f")),
    ("accumulator", _number("accumulator", ".0f")),
    ("cycles", _number("cycles", ",.0f")),
    ("frames/s", _number("fps", ".0f")),
    ("p50, ms", _number("p50", ".2f")),
    ("p95, ms", _number("p95", ".2f")),
)
