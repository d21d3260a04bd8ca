"""Figures, drawn without pyplot so that no global backend is touched.

`svg` turns a figure into markup whose text and grid take the page's own colours, so one drawing
serves a light and a dark page, and whose marks tell layer and value under the mouse; `png` is for
the README. Functions take the width of the figure, since text that can be read on a wide page
cannot on a phone: a page has each drawing in two widths, and shows one.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from brevitas_axe.accumulator import accumulator_limit
from brevitas_axe.display import one_line
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
CHOSEN = "#e08e2b"
# Widths of a figure in inches, for a screen and for a phone. At the width of 390 pixels that phones
# have, and of 900 on a screen, text of this size is larger than 11 pixels.
WIDE, NARROW = 8.6, 3.2
TEXT = 9
_ROW_INCHES, _ROW_INCHES_NARROW, _MOST_INCHES = 0.34, 0.56, 60.0
_MOST_LETTERS = 40  # of a label
_TIP, _FONT = "tip:", "DejaVu Sans"
# Steps of a search that are drawn, and values that a legend can name.
_POINTS, _MOST_WORDS = 200, 10


def accuracy_bars(arms: Sequence[Mapping[str, Any]], width: float = WIDE) -> Figure:
    """One horizontal bar per arm that has an accuracy, in the table's order."""
    shown = [arm for arm in arms if arm.get("accuracy") is not None]
    labels = [_label(arm) for arm in shown]
    figure, axes = rows_of(labels, width)
    values = [100 * arm["accuracy"] for arm in shown]
    plain = KIND_COLOURS["reference"]
    colours = [KIND_COLOURS.get(arm.get("kind") or "", plain) for arm in shown]
    _bars(axes, values, [f"{n}: {v:.1f} %" for n, v in zip(labels, values, strict=True)], colours)
    for row, value in enumerate(values):
        axes.text(value + 1, row, f"{value:.1f}", va="center", color=INK, fontsize=TEXT)
    axes.set_xlim(0, 115)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("accuracy, %")
    return figure


def layer_widths(certificate: Certificate, width: float = WIDE) -> Figure:
    """Proven accumulator width of every dot product, with its target as a tick."""
    rows = [(entry, entry.width) for entry in certificate.entries if entry.width is not None]
    figure, axes = rows_of([entry.layer or entry.name for entry, _ in rows], width)
    tips = [f"{e.layer or e.name}: needs {b} bits, target {e.target or 'none'}" for e, b in rows]
    _bars(
        axes, [bits for _, bits in rows], tips, [_judged(entry, certificate) for entry, _ in rows]
    )
    ends = [max(bits, entry.target or 0) for entry, bits in rows]
    axes.set_xlim(0, max([*ends, 1]) * 1.05)
    for row, (entry, bits) in enumerate(rows):
        axes.text(0.2, row, f"{bits}", va="center", color="white", fontsize=TEXT)
        if entry.target is not None:
            axes.plot([entry.target] * 2, [row - 0.3, row + 0.3], color=CHOSEN, linewidth=2.5)
    axes.set_xlabel("accumulator bits: proven (bar), target (tick)")
    return figure


def budget_use(certificate: Certificate, width: float = WIDE) -> Figure:
    """Worst-case sum of every dot product as a share of its accumulator's limit."""
    rows = []
    for entry in certificate.entries:
        if entry.minimum is None or entry.maximum is None or entry.target is None:
            continue
        largest = max(-entry.minimum, entry.maximum)
        rows.append((entry, 100 * largest / accumulator_limit(entry.target)))
    figure, axes = rows_of([entry.layer or entry.name for entry, _ in rows], width)
    tips = [
        f"{e.layer or e.name}: sums from {e.minimum} to {e.maximum}, {share:.4g} % of {e.target} "
        "bits"
        for e, share in rows
    ]
    _bars(
        axes, [share for _, share in rows], tips, [_judged(entry, certificate) for entry, _ in rows]
    )
    axes.axvline(100, color=CHOSEN, linewidth=2)
    most = max([share for _, share in rows], default=0)
    # One layer far above its budget would make the bars of the others invisible.
    if most > 400:
        logarithmic(axes, "x")
    else:
        axes.set_xlim(0, max(most, 100) * 1.08)
    axes.set_xlabel("largest possible sum, % of the range")
    return figure


def groups_of_bars(
    labels: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    colours: Sequence[str],
    axis: str,
    width: float = WIDE,
) -> Figure:
    """A bar per series in the row of every label; none where there is no value.

    Where there is one series, its values stand at the bars instead of its name above them.

    Args:
        labels: of the rows, such as layers.
        series: name → values, one per label.
        colours: one per series.
        axis: what the values are.
        width: of the figure, in inches.
    """
    figure, axes = rows_of(labels, width)
    height = 0.66 / max(len(series), 1)
    for place, ((what, values), colour) in enumerate(zip(series.items(), colours, strict=True)):
        rows = np.arange(len(labels)) + height * (place - (len(series) - 1) / 2)
        bars = axes.barh(rows, [v or 0 for v in values], color=colour, height=height * 0.92)
        for bar, label, value in zip(bars, labels, values, strict=True):
            tip(bar, f"{label}: {what} {'–' if value is None else f'{value:,.6g}'}")
    axes.set_xlabel(axis, parse_math=False)
    if len(series) == 1:
        (values,) = series.values()
        for row, value in enumerate(values):
            text, place = "" if value is None else f"{value:,.6g}", (value or 0, row)
            aside = {"xytext": (4, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, place, color=INK, fontsize=TEXT, **aside)
        room = 1.4 if width <= NARROW else 1.12  # for the longest value
        axes.set_xlim(0, room * max(max(v or 0 for v in values), 1e-12))
    else:  # above the bars, which leave no room between them
        legend(axes, axes.containers, list(series))
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
        legend(axes, [Patch(color=shade) for shade in shades], words)
    axes.set_xlabel("step")
    return figure


def svg(figure: Figure) -> str:
    """Inline SVG markup, the same bytes for the same figure."""
    buffer = io.StringIO()
    # Text stays text, in the page's own font, which is hardly wider than the one measured here.
    style: dict[Any, Any] = {
        "svg.hashsalt": "brevitas_axe",
        "svg.fonttype": "none",
        "font.sans-serif": [_FONT],
    }
    with matplotlib.rc_context(style):
        # Metadata would be RDF, which HTML does not allow.
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = markup.replace(f" font-family: '{_FONT}', sans-serif;", "")
    # There are no other links, so every end of one is the end of a mark with a text.
    markup = re.sub(rf"<a xlink:href=([\"']){_TIP}(.*?)\1[^>]*>", r"<g><title>\2</title>", markup)
    markup = markup.replace("</a>", "</g>")
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


def tip(mark: Patch, text: str) -> None:
    """Shows a text where the mouse is on a mark; a browser does that without a script."""
    mark.set_url(_TIP + one_line(text))  # `svg` makes a text of this link
    # Inside the axes, and costly to lay out where there are thousands.
    mark.set_in_layout(False)


def dots(axes: Axes, x: Any, y: Any, texts: Sequence[str], **style: Any) -> Artist:
    """A mark at each (x, y), with its text as `tip` has it."""
    marks = axes.scatter(x, y, **style)
    marks.set_urls([_TIP + one_line(text) for text in texts])
    marks.set_in_layout(False)
    return marks


def targets(axes: Axes, x: Any, y: Any, texts: Sequence[str], colour: str) -> None:
    """Unseen marks with texts over those that are drawn, larger, so that they are easy to hit."""
    dots(axes, x, y, texts, s=60, color=colour, alpha=0.01)


def _bars(axes: Axes, values: Sequence[float], tips: Sequence[str], colours: Sequence[str]) -> None:
    """One bar per row."""
    bars = axes.barh(range(len(values)), values, color=colours, height=0.6)
    for bar, text in zip(bars, tips, strict=True):
        tip(bar, text)


def _judged(entry: DotProduct, certificate: Certificate) -> str:
    """Green where it is proven to fit, and grey where nothing is claimed."""
    if entry.name in certificate.excluded:
        return KIND_COLOURS["reference"]
    return KIND_COLOURS["ours" if entry.fits else "overflow"]


def rows_of(labels: Sequence[str], width: float = WIDE) -> tuple[Figure, Axes]:
    """Axes for one row per label, first label on top; labels stand above their rows on a phone."""
    narrow = width <= NARROW
    pitch = _ROW_INCHES_NARROW if narrow else _ROW_INCHES
    figure, axes = axes_of(width, min(0.8 + pitch * max(len(labels), 1), _MOST_INCHES))
    shown = [shortened(one_line(label)) for label in labels]
    # parse_math off: a layer may be called "a$b$".
    axes.set_yticks(range(len(shown)), [] if narrow else shown, parse_math=False)
    if narrow:
        at = axes.get_yaxis_transform()
        for row, label in enumerate(shown):
            place = {"va": "bottom", "transform": at, "parse_math": False}
            text = axes.text(0, row - 0.36, label, color=INK, fontsize=TEXT, **place)
            text.set_in_layout(False)
    axes.set_ylim(len(labels) - 0.5, -1 if narrow else -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color=FAINT, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    return figure, axes


def shortened(label: str, most: int = _MOST_LETTERS) -> str:
    """A label with its middle left out where it is long: both ends tell layers apart."""
    if len(label) <= most:
        return label
    half = (most - 1) // 2
    return f"{label[:half]}…{label[-half:]}"


def legend(axes: Axes, marks: Sequence[Any], names: Sequence[str]) -> None:
    """A legend above the axes, with names taken literally and in as many columns as fit."""
    points = 72 * axes.figure.get_figure(root=True).get_figwidth() * 0.85
    column = 40 + 0.62 * TEXT * max(map(len, names), default=1)
    columns = min(max(int(points / column), 1), max(len(names), 1))
    made = axes.legend(
        marks, names, frameon=False, fontsize=TEXT, labelcolor=INK, loc="lower left",
        bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
    )  # fmt: skip
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
    axes.tick_params(colors=INK, labelsize=TEXT)
    if width <= NARROW:
        axes.locator_params(axis="x", nbins=5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(INK)
        axis.label.set_fontsize(TEXT)
    return figure, axes


def logarithmic(axes: Axes, which: Literal["x", "y"]) -> None:
    """Makes an axis logarithmic, with plain numbers as ticks, enough of them where it is short."""
    axes.set(**{f"{which}scale": "log"})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=5))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.3g}"))
    axis.set_minor_locator(NullLocator())
