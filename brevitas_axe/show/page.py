"""One self-contained HTML page: no script, no request, every text escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from brevitas_axe.files import write_whole
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import Certificate, DotProduct
from brevitas_axe.show import plots
from brevitas_axe.show.graph import netron
from brevitas_axe.show.origin import told
from brevitas_axe.show.parts import (
    badge,
    cell,
    document,
    drawing,
    how_to_read,
    name_cell,
    origin_line,
    paragraph,
    sentence,
    significant,
    table,
    width_cells,
)
from brevitas_axe.show.tables import COLUMNS, NUMBERS, percent

_HOW_TO_READ = (
    (
        "Accumulator",
        "A dot product adds up weight × input in a register of P bits. If a sum leaves "
        "±(2^(P−1) − 1) it wraps around, and the result is wrong.",
    ),
    (
        "Needs, or proven width",
        "The smallest P that no input can overflow, whatever the order of the additions: computed "
        "in exact integers from the weights and from the range of the input's quantizer, not "
        "from a test set.",
    ),
    (
        "Minimum and maximum",
        "The worst sums over all rows and tiles of the layer. Both must lie inside the target's "
        "range; the margin is the number of bits left over.",
    ),
    (
        "Tile",
        "With a tile size T, every T products share one accumulator of the target width, and an "
        "outer accumulator adds up the tiles.",
    ),
    (
        "Outer width",
        "Bits of the accumulator that adds up the tiles, proven from the sums of these tiles. With "
        "bias: bits where the bias is added in the same accumulator.",
    ),
    (
        "Weight error",
        "||(W − Q) X||² / ||W X||² with the quantized inputs X of a layer, its float weights W and "
        "the quantized ones Q. A solver that also makes up for the errors of the inputs minimises "
        "||W F − Q X||² with the float inputs F instead, so its weight error may be larger than "
        "that of rounding, which in addition is told without a limit on the accumulator.",
    ),
    (
        "Not proven",
        "Either the sums need more bits than the target, or the reason column says what prevented "
        "a proof. Excluded layers are listed, and nothing is claimed for them.",
    ),
)


# Field of a `DotProduct` → its column; those of `_OPTIONAL` only where something stands in them.
_PROVEN = {
    "inputs": "K",
    "tile_size": "tile",
    "weight_type": "weights",
    "input_type": "input",
    "minimum": "minimum",
    "maximum": "maximum",
    "width": "proven width",
    "outer_width": "outer width",
    "width_with_bias": "with bias",
    "target": "target",
    "margin_bits": "margin",
}
_OPTIONAL = {"tile_size", "outer_width", "width_with_bias", "target", "margin_bits"}
_WIDEST = {"width": "widest accumulator needed", "outer_width": "widest sum of tiles needed"}
# Layers that are named at the top, where a certificate is none.
_MOST_REASONS = 8
_LOGGED = {
    "inputs": "K",
    "outputs": "outputs",
    "samples": "samples",
    "error_rounded": "weight error, rounded",
    "error": "weight error, solved",
    "budget_used": "budget used",
    "seconds": "seconds",
}


def write_page(
    path: str | Path,
    summary: Mapping[str, Any],
    certificate: Certificate | None = None,
    plan: Plan | None = None,
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: the .html file.
        summary: see `brevitas_axe.show`.
        certificate: the proof, or None.
        plan: the requested widths, or None.
    """
    write_whole(path, page(summary, certificate, plan).encode())


def page(
    summary: Mapping[str, Any],
    certificate: Certificate | None = None,
    plan: Plan | None = None,
    graph: str = "",
) -> str:
    """The report as HTML text; see `write_page`. `graph` is HTML, see `graph_view`."""
    body = [
        origin_line(told(summary.get("origin") or {})),
        paragraph(summary.get("description")),
        _facts(summary, certificate),
        _reasons(certificate),
        _validation(summary.get("validation") or {}),
        _arms(summary.get("arms") or ()),
        _certificate(certificate),
        graph,
        "" if certificate is None else netron(certificate),
        _layers(summary.get("layers") or ()),
        _history(summary.get("history") or ()),
        _plan(plan),
        _resources(summary.get("resources") or ()),
        how_to_read(_HOW_TO_READ),
        _footer(summary),
    ]
    return document(str(summary["title"]), body)


def _facts(summary: Mapping[str, Any], certificate: Certificate | None) -> str:
    facts = []
    if certificate is not None:
        label, said = "proven" if certificate.ok else "not proven", "overflow certificate"
        if certificate.unclaimed:
            label += " in part" * certificate.ok
            judged = f"{len(certificate.judged)} of {len(certificate.entries)}"
            said += f" of {judged} dot products"
        facts.append((badge(label, certificate.ok), said))
        for key, label in _WIDEST.items():
            widths = [getattr(entry, key) for entry in certificate.judged]
            known = [width for width in widths if width is not None]
            if known:
                facts.append((f"{max(known)} bits", label))
    if summary.get("accumulator") is not None:
        tile = summary.get("tile")
        label = "requested accumulator" + (f", tile {tile}" if tile else "")
        facts.append((f"{summary['accumulator']} bits", label))
    measured = [arm for arm in summary.get("arms") or () if arm.get("accuracy") is not None]
    # The first and the last arm that have an accuracy; none is selected by it.
    for arm in (
        *[arm for arm in measured if arm.get("kind") == "reference"][:1],
        *[arm for arm in measured if arm.get("kind") == "ours"][-1:],
    ):
        facts.append((percent(arm["accuracy"]), escape(str(arm["name"]))))
    for name, row in (summary.get("validation") or {}).items():
        if row["limited"] is not None:
            facts.append((f"{row['limited']:.4g}", escape(f"{name}: {row['function']}")))
    if summary.get("seconds") is not None:
        facts.append((f"{summary['seconds']:.3g} s", "whole run"))
    cells = "".join(
        f'<div class="fact"><b>{value}</b><span>{label}</span></div>' for value, label in facts
    )
    return f'<div class="facts">{cells}</div>' if cells else ""


def _reasons(certificate: Certificate | None) -> str:
    """What a certificate does not cover, and why it is not one, layer by layer."""
    if certificate is None:
        return ""
    uncovered = _uncovered(certificate)
    if certificate.ok:
        return uncovered
    entries = (*certificate.entries, *certificate.sums)
    claimed = [entry for entry in entries if entry.name not in certificate.excluded]
    open_ones = [entry for entry in claimed if not entry.fits]
    lines = [
        f"<li>{name_cell(e.layer or e.name)}: {escape(e.verdict)}</li>"
        for e in open_ones[:_MOST_REASONS]
    ]
    if len(open_ones) > _MOST_REASONS:
        lines.append(f"<li>and {len(open_ones) - _MOST_REASONS} more, in the table below</li>")
    if not claimed:
        lines = ["<li>nothing is claimed of any layer</li>"]
    return f"<h2>Why it is not proven</h2>\n<ul>{''.join(lines)}</ul>\n{uncovered}"


def _uncovered(certificate: Certificate) -> str:
    """Layers of which nothing is claimed, so that no reader takes the verdict for the model's."""
    if not certificate.unclaimed:
        return ""
    names = [name_cell(name) for name in certificate.unclaimed[:_MOST_REASONS]]
    more = len(certificate.unclaimed) - len(names)
    listed = ", ".join(names) + (f" and {more} more" if more > 0 else "")
    return f"<p>The verdict does not cover the whole model: nothing is claimed of {listed}.</p>"


def _validation(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """What the user's function says, in float and on accumulators."""
    if not rows:
        return ""
    keys = ("unquantized", "unlimited", "limited")
    function = next(iter(rows.values()))["function"]
    cells = [
        ([name_cell(name), *("–" if row[k] is None else f"{row[k]:.6g}" for k in keys)], "")
        for name, row in rows.items()
    ]
    headings = ["model", "float", "accumulators of any width", "its accumulators"]
    return (
        "<h2>How good it is</h2>\n"
        + table(headings, cells, range(1, 4))
        + paragraph(f"Measure: {function}.")
    )


def _arms(arms: Sequence[Mapping[str, Any]]) -> str:
    if not arms:
        return ""
    rows = []
    for arm in arms:
        cells = [escape(value(arm)) for _, value, _ in COLUMNS]
        cells[-1] = sentence(str(arm.get("note") or ""))
        if arm.get("accumulator") is not None:
            cells[5] = badge(cells[5], bool(arm.get("overflow_free")))
        kind = arm.get("kind")
        rows.append((cells, kind if kind in {"ours", "overflow"} else ""))
    parts = [
        "<h2>What the accumulator costs</h2>",
        table([heading for heading, _, _ in COLUMNS], rows, numbers=NUMBERS),
    ]
    if any(arm.get("accuracy") is not None for arm in arms):
        parts.append(drawing(partial(plots.accuracy_bars, arms), "accuracy of every arm"))
    return "\n".join(parts)


def _certificate(certificate: Certificate | None) -> str:
    if certificate is None:
        return ""
    entries = (*certificate.entries, *certificate.sums)
    # Of columns that not every certificate has something in.
    shown = {key for key in _OPTIONAL if any(getattr(e, key) is not None for e in entries)}
    columns = {key: h for key, h in _PROVEN.items() if key not in _OPTIONAL or key in shown}
    rows = []
    for entry in entries:
        values = [cell(getattr(entry, key)) for key in columns]
        name = name_cell(entry.layer or entry.name)
        op = escape(entry.op)
        operation = f'<span class="operation" title="{op}">{op}</span>'
        rows.append(([name, _verdict(entry, certificate), *values, operation], ""))
    headings = ["layer", "verdict", *columns.values(), "operation"]
    words = {"weight_type", "input_type"}
    numbers = [index for index, key in enumerate(columns, start=2) if key not in words]
    parts = [
        "<h2>Overflow certificate</h2>",
        table(headings, rows, numbers),
        *(paragraph(f"Assumed: {said}.") for said in certificate.assumptions),
    ]
    if any(entry.width is not None for entry in certificate.entries):
        widths = partial(plots.layer_widths, certificate)
        parts.append(drawing(widths, "proven and target width per layer"))
        if any(entry.target is not None for entry in certificate.entries):
            use = partial(plots.budget_use, certificate)
            parts.append(drawing(use, "budget use per layer"))
    return "\n".join(parts)


def _verdict(entry: DotProduct, certificate: Certificate) -> str:
    """A cell: the verdict in a word, and the reason where it is not what one wishes for."""
    if entry.name in certificate.excluded:
        return '<span class="soft">excluded</span>'
    verdict = badge("proven" if entry.fits else "not proven", entry.fits)
    reason = entry.verdict.removeprefix("not proven: ")
    return verdict if entry.fits else verdict + sentence(reason)


def _layers(layers: Sequence[Mapping[str, Any]]) -> str:
    if not layers:
        return ""
    # A layer that was loaded from a state may have no numbers.
    known = [key for key in _LOGGED if any(key in layer for layer in layers)]
    rows = [
        (
            [
                name_cell(str(layer["name"])),
                *(significant(layer.get(key)) for key in known),
            ],
            "",
        )
        for layer in layers
    ]
    headings = ["layer", *(_LOGGED[key] for key in known)]
    return "<h2>What the solver did</h2>\n" + table(headings, rows, range(1, len(headings)))


def _history(entries: Sequence[Mapping[str, Any]]) -> str:
    """Training, epoch by epoch."""
    if not entries:
        return ""
    keys = [key for key in entries[-1] if key != "certified"]
    rows = [([significant(entry.get(key)) for key in keys], "") for entry in entries]
    headings = [key.replace("_", " ") for key in keys]
    return "<h2>Training</h2>\n" + table(headings, rows, range(len(keys)))


def _plan(plan: Plan | None) -> str:
    if plan is None or not plan.layers:
        return ""
    rows = [(width_cells(name, precision), "") for name, precision in plan.layers.items()]
    headings = ["layer", "weight bits", "input bits", "accumulator bits", "tile"]
    return "<h2>Plan</h2>\n" + table(headings, rows, numbers=range(1, 5))


def _resources(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    keys = ("accumulator", "unlimited_accumulator", "lut", "unlimited_lut")
    cells = [[name_cell(str(row["name"])), *(cell(row[k]) for k in keys)] for row in rows]
    sums = (cell(sum(row[key] for row in rows)) for key in keys[2:])
    headings = ["layer", "accumulator bits", "without budget", "LUT", "LUT without budget"]
    return (
        "<h2>What it costs on an FPGA</h2>\n"
        + table(headings, [(c, "") for c in [*cells, ["sum", "", "", *sums]]], range(1, 5))
        + drawing(partial(_luts, rows), "look-up tables per layer")
        + paragraph(
            "FINN's estimates of its matrix units in HLS (MVAU_hls, VVAU_hls) at one "
            "multiplication per cycle; for MVAU_rtl it reports DSP blocks and 0 LUT."
        )
    )


def _luts(rows: Sequence[Mapping[str, Any]], width: float) -> Figure:
    """Look-up tables of every layer, with and without the limit on accumulators."""
    series = {
        "with the accumulator budget": [row["lut"] for row in rows],
        "without": [row["unlimited_lut"] for row in rows],
    }
    colours = [plots.KIND_COLOURS[kind] for kind in ("ours", "reference")]
    return plots.groups_of_bars([str(row["name"]) for row in rows], series, colours, "LUT", width)


def _footer(summary: Mapping[str, Any]) -> str:
    environment = summary.get("environment") or {}
    text = " · ".join(f"{key} {value}" for key, value in environment.items())
    return f"<footer>{escape('brevitas_axe' + (' · ' + text if text else ''))}</footer>"
