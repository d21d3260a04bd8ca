"""Figures, drawn without pyplot so that no global backend is touched.

`svg` turns a figure into markup whose text and grid take the page's own colours, so one drawing
serves a light and a dark page; `png` is for the README.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from brevitas_axe.accumulator import accumulator_limit
from brevitas_axe.proof.certificate import Certificate, DotProduct

# Placeholder colours that `svg` replaces by the page's CSS variables.
INK, FAINT = "#101112", "#d0d1d2"
_CSS = {INK: "var(--ink)", FAINT: "var(--line)"}

KIND_COLOURS = {
    "reference": "#8a94a6",
    "overflow": "#d1495b",
    "published": "#4a90d9",
    "ours": "#2a9d6f",
}
_TARGET = "#e08e2b"
_ROW_INCHES, _MOST_INCHES = 0.34, 60.0
# Steps of a search that are drawn, and values that a legend can name.
_POINTS, _MOST_WORDS = 200, 10


def accuracy_bars(arms: Sequence[Mapping[str, Any]]) -> Figure:
    """One horizontal bar per arm that has an accuracy, in the table's order."""
    shown = [arm for arm in arms if arm.get("accuracy") is not None]
    figure, axes = rows_of([_label(arm) for arm in shown])
    values = [100 * arm["accuracy"] for arm in shown]
    plain = KIND_COLOURS["reference"]
    colours = [KIND_COLOURS.get(arm.get("kind") or "", plain) for arm in shown]
    axes.barh(range(len(shown)), values, color=colours, height=0.66)
    for row, value in enumerate(values):
        axes.text(value + 1, row, f"{value:.1f}", va="center", color=INK, fontsize=8)
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %")
    return figure


def layer_widths(certificate: Certificate) -> Figure:
    """Proven accumulator width of every dot product, with its target as a tick."""
    rows = [(entry, entry.width) for entry in certificate.entries if entry.width is not None]
    figure, axes = _bars([(entry, float(width)) for entry, width in rows])
    for row, (entry, width) in enumerate(rows):
        axes.text(0.2, row, f"{width}", va="center", color="white", fontsize=8)
        if entry.target is not None:
            axes.plot([entry.target] * 2, [row - 0.42, row + 0.42], color=_TARGET, linewidth=2.5)
    ends = [max(width, entry.target or 0) for entry, width in rows]
    axes.set_xlim(0, max([*ends, 1]) * 1.05)
    axes.set_xlabel("accumulator bits: proven (bar) and target (tick)")
    return figure


def budget_use(certificate: Certificate) -> Figure:
    """Worst-case sum of every dot product as a share of its accumulator's limit."""
    rows = []
    for entry in certificate.entries:
        if entry.minimum is None or entry.maximum is None or entry.target is None:
            continue
        largest = max(-entry.minimum, entry.maximum)
        rows.append((entry, 100 * largest / accumulator_limit(entry.target)))
    figure, axes = _bars(rows)
    axes.axvline(100, color=_TARGET, linewidth=2)
    most = max([share for _, share in rows], default=0)
    # One layer far above its budget would make the bars of the others invisible.
    if most > 400:
        axes.set_xscale("log")
    else:
        axes.set_xlim(0, max(most, 100) * 1.08)
    axes.set_xlabel("largest possible sum, % of the accumulator's range")
    return figure


def policy(
    decisions: Mapping[str, Sequence[str]], course: Sequence[Mapping[str, Sequence[float]]]
) -> Figure:
    """How likely every value of each decision was, over the steps of a search.

    Args:
        decisions: name → its values in words.
        course: the probabilities of these values in front of each step, decision by decision.
    """
    figure, axes = rows_of(list(decisions))
    words = list(dict.fromkeys(word for values in decisions.values() for word in values))
    shades = matplotlib.colormaps["viridis"](np.linspace(0, 1, max(len(words), 2)))
    steps = range(0, len(course), max(len(course) // _POINTS, 1))
    for row, (name, values) in enumerate(decisions.items()):
        shares = np.array([course[step][name] for step in steps])
        ends = row + 0.4 - 0.8 * np.cumsum(shares, axis=1)
        below = np.full(len(steps), row + 0.4)
        for word, above in zip(values, ends.T, strict=True):
            axes.fill_between(steps, below, above, color=shades[words.index(word)], linewidth=0)
            below = above
    if 0 < len(words) <= _MOST_WORDS:
        legend(axes, [Patch(color=shade) for shade in shades], words, outside=True)
    axes.set_xlabel("step")
    return figure


def svg(figure: Figure) -> str:
    """Inline SVG markup, the same bytes for the same figure."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "brevitas_axe", "svg.fonttype": "path"}):
        # Metadata would be RDF, which HTML does not allow.
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    # Ids must be unique in a page, which has several drawings.
    own = "d" + hashlib.sha256(markup.encode()).hexdigest()[:8]
    markup = re.sub(r'(\bid="|href="#|url\(#)', rf"\1{own}-", markup)
    for stand_in, variable in _CSS.items():
        markup = markup.replace(stand_in, variable)
    return markup


def png(figure: Figure) -> bytes:
    """The figure as a PNG file, 160 dots per inch, on white."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white")
    return buffer.getvalue()


def _label(arm: Mapping[str, Any]) -> str:
    if arm.get("weight") is None:
        return str(arm["name"])
    return f"{arm['name']}  W{arm['weight']}A{arm['input']}"


def _bars(rows: Sequence[tuple[DotProduct, float]]) -> tuple[Figure, Axes]:
    """One bar per dot product, green where it is proven to fit."""
    figure, axes = rows_of([entry.layer or entry.name for entry, _ in rows])
    colours = [KIND_COLOURS["ours" if entry.fits else "overflow"] for entry, _ in rows]
    axes.barh(range(len(rows)), [value for _, value in rows], color=colours, height=0.6)
    return figure, axes


def rows_of(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """Axes for one horizontal bar per label, first label on top."""
    figure, axes = axes_of(7.2, min(0.8 + _ROW_INCHES * max(len(labels), 1), _MOST_INCHES))
    # parse_math off: a layer may be called "a$b$".
    axes.set_yticks(range(len(labels)), [str(label) for label in labels], parse_math=False)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    return figure, axes


def legend(axes: Axes, marks: Sequence[Any], names: Sequence[str], outside: bool = False) -> None:
    """A legend with names taken literally: inside the axes, or above them if `outside`."""
    above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": len(names)}
    made = axes.legend(
        marks, names, frameon=False, fontsize=8, labelcolor=INK, **(above if outside else {})
    )
    for text in made.get_texts():
        text.set_parse_math(False)


def axes_of(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of this size in inches, in the style of the page."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_axisbelow(True)
    axes.patch.set_alpha(0)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)
    return figure, axes
