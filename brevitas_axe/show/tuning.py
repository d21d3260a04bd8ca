"""One page about a tuning: how good every trial is against what it costs, and all of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from brevitas_axe.files import write_whole
from brevitas_axe.run.tune import Trial, TuneResult
from brevitas_axe.show import plots
from brevitas_axe.show.origin import origin, told
from brevitas_axe.show.parts import (
    cell,
    document,
    drawing,
    origin_line,
    paragraph,
    sentence,
    significant,
    table,
)

# One trial that costs so many times as much as another would press all others together.
_FAR = 8


def write_tuning(path: str | Path, found: TuneResult, cost: str, unit: str = "") -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the .html file.
        found: what `tune` returned.
        cost: of the trials' costs, along the drawing.
        unit: of that cost.
    """
    shown = [trial for trial in found.trials if cost in trial.costs]
    body = [
        origin_line(told(origin())),
        paragraph(
            "The values are those by which the best trial was chosen, so its own is too good: judge"
            " it on data that it has not seen."
        ),
        "<h2>Value against cost</h2>" if shown else "",
        drawing(partial(trade_off, found, cost, unit), f"value against {cost}") if shown else "",
        "<h2>Trials</h2>",
        _trials(found, cost),
    ]
    write_whole(path, document("Trials of a tuning", body).encode())


def trade_off(found: TuneResult, cost: str, unit: str = "", width: float = plots.WIDE) -> Figure:
    """Value against cost: a dot for each trial, a line through the best ones, a star where chosen.

    The float model is a dashed line, plain widths are a square, and what does not fit the budget is
    a cross.
    """
    figure, axes = plots.axes_of(width, 3.4)
    shown = [t for t in found.trials if cost in t.costs and not math.isnan(t.value)]
    marks, names = [], []

    def draw(name: str, trials: Sequence[Trial], *style: Any, **more: Any) -> None:
        if trials:
            x, y = [t.costs[cost] for t in trials], [t.value for t in trials]
            marks.extend(axes.plot(x, y, *style, **more))
            names.append(name)

    colours = plots.KIND_COLOURS
    draw("over the budget", [t for t in shown if not t.fits], "x", color=colours["overflow"])
    fitting = [t for t in shown if t.fits]
    draw("trials", fitting, "o", markersize=4, color=colours["reference"])
    draw("none is better and cheaper", front(fitting, cost), "-", color=colours["published"])
    plain = [t for t in shown if t == found.plain]
    draw("plain widths", plain, "s", markersize=7, color=colours["reference"])
    draw("chosen", [t for t in shown if t == found.best], "*", markersize=13, color=plots.CHOSEN)
    if math.isfinite(found.unquantized):
        marks.append(axes.axhline(found.unquantized, linestyle="--", color=plots.INK, linewidth=1))
        names.append("float")
    x, y = [t.costs[cost] for t in shown], [t.value for t in shown]
    texts = [
        f"trial {found.trials.index(t) + 1}, {t.bits}: {t.value:.6g} at {cost} {t.costs[cost]:,.6g}"
        for t in shown
    ]
    plots.targets(axes, x, y, texts, plots.CHOSEN)
    if x and 0 < min(x) < max(x) / _FAR:
        plots.logarithmic(axes, "x")
    axes.set_xlabel(f"{cost}, {unit}" if unit else cost, parse_math=False)
    axes.set_ylabel("value")
    axes.grid(color=plots.FAINT, linewidth=0.6)
    plots.legend(axes, marks, names)
    return figure


def front(trials: Sequence[Trial], cost: str) -> list[Trial]:
    """Trials than which none is both cheaper and better, from the cheapest on."""
    found: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.costs[cost], -t.value)):
        if not found or trial.value > found[-1].value:
            found.append(trial)
    return found


def _trials(found: TuneResult, cost: str) -> str:
    """A table of all trials, in order, with a remark on what they have in common."""
    decisions = list(dict.fromkeys(n for t in found.trials for n in t.configuration))
    values = {name: [t.configuration.get(name) for t in found.trials] for name in decisions}
    same = [name for name in decisions if all(v == values[name][0] for v in values[name])]
    varied = [name for name in decisions if name not in same]
    headings = ["trial", "value", cost, "bits", *varied, "epochs", "seconds", "remark"]
    rows = []
    for number, trial in enumerate(found.trials, start=1):
        remark = trial.refused or ("" if trial.fits else "over the budget")
        if trial == found.best:
            remark = "chosen"
        cells = [
            str(number),
            "–" if math.isnan(trial.value) else f"{trial.value:.6g}",
            f"{trial.costs[cost]:,.6g}" if cost in trial.costs else "–",
            escape(trial.bits) or "–",
            *(cell(trial.configuration.get(name)) for name in varied),
            str(trial.trained),
            significant(trial.seconds),
            sentence(remark) if trial.refused else escape(remark),
        ]
        rows.append((cells, "ours" if trial == found.best else ""))
    common = ", ".join(f"{n} {values[n][0]}" for n in same if values[n][0] is not None)
    numbers = [0, 1, 2, len(headings) - 3, len(headings) - 2]
    remark = paragraph(f"In all trials: {common}." if common and len(found.trials) > 1 else None)
    return table(headings, rows, numbers) + remark
