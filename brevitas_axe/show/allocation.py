"""One page about an allocation: front, bits of every layer, and the scores behind them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import write_whole
from brevitas_axe.methods.allocate import Allocation, Problem
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.show import plots
from brevitas_axe.show.origin import origin, told
from brevitas_axe.show.parts import (
    document,
    drawing,
    how_to_read,
    origin_line,
    paragraph,
    significant,
    table,
    width_cells,
)

_BITS = {"weight": "ours", "input": "published", "accumulator": "reference"}
# Of choices that differ from the plan in one width.
_STYLES: dict[str, dict[str, Any]] = {
    **{what: {"s": 22, "color": plots.KIND_COLOURS[kind]} for what, kind in _BITS.items()},
    "tile": {"s": 22, "color": plots.KIND_COLOURS["overflow"]},
    "plan": {"s": 110, "color": plots.CHOSEN, "marker": "*", "zorder": 3},
}
_HEADINGS = (
    *("layer", "weight bits", "input bits", "accumulator bits", "tile"),
    *("harm", "least harm", "most harm"),
)
_TERMS = (
    (
        "Harm",
        "The estimated rise of the model's loss by quantizing one layer with these bits, and "
        "leaving the others as they are. Harms of layers are added up.",
    ),
    ("Least and most harm", "Those of the layer's best and worst choice."),
    (
        "Harm against cost",
        "Each line is the plans that one allocator finds as the budget grows; the star is the plan "
        "of this page. No plan of a good allocator has another one below it and to its left.",
    ),
    (
        "Sensitivity",
        "A dot is a choice that differs from the plan in one width. The mouse on it tells which.",
    ),
)


def write_allocation(
    path: str | Path,
    problem: Problem,
    found: Allocation,
    fronts: Mapping[str, Sequence[Allocation]],
    swept: str,
    unit: str = "",
) -> None:
    """Writes the page, whole or not at all.

    Args:
        path: the .html file.
        problem: what was allocated.
        found: the allocation.
        fronts: allocator → its allocations, see `brevitas_axe.methods.allocate.pareto`.
        swept: name of the cost along the front.
        unit: of that cost.

    Raises:
        InvalidOption: `swept` is no cost of the allocations.
    """
    # Three digits may be too few to see whether a budget is met.
    spent = [
        [escape(name), f"{found.costs[name]:.6g}", f"{limit:.6g}"]
        for name, limit in problem.budgets.items()
    ]
    body = [
        origin_line(told(origin())),
        "<h2>Budgets</h2>",
        table(["cost", "spent", "budget"], [(cells, "") for cells in spent], numbers=[1, 2]),
        "<h2>Harm against cost</h2>",
        drawing(partial(pareto_front, fronts, swept, unit, found), f"harm against {swept}"),
        "<h2>Bits of every layer</h2>",
        drawing(partial(layer_bits, found.plan), "bits of every layer"),
        "<h2>Sensitivity</h2>",
        drawing(partial(sensitivity, problem, found.plan), "harm of the choices of every layer"),
        _sensitivity(problem, found.plan),
        how_to_read(_TERMS),
    ]
    write_whole(path, document("Bits for every layer", body).encode())


def pareto_front(
    fronts: Mapping[str, Sequence[Allocation]],
    cost: str,
    unit: str = "",
    found: Allocation | None = None,
    width: float = plots.WIDE,
) -> Figure:
    """Estimated harm against a cost, one line per allocator; a star where `found` is.

    Raises:
        InvalidOption: an allocation has no such cost.
    """
    every = [*chain(*fronts.values()), *([] if found is None else [found])]
    for point in every:
        if cost not in point.costs:
            raise InvalidOption(
                f"an allocation has no cost '{cost}', only: {', '.join(point.costs)}; sweep one of "
                "those."
            )
    figure, axes = plots.axes_of(width, 3.4)
    colours = list(plots.KIND_COLOURS.values())[::-1]
    lines = []
    for index, (name, front) in enumerate(fronts.items()):
        style = ("-", "--", ":", "-.")[index % 4]
        # Styles and colours have cycles of different lengths, so that their pairs do not repeat.
        colour = colours[(index + index // 4) % 4]
        lines.append(_line(axes, name, front, cost, linestyle=style, color=colour))
    names = list(fronts)
    if found is not None:
        lines.append(
            _line(axes, "plan", [found], cost, marker="*", markersize=13, color=plots.CHOSEN)
        )
        names.append("plan")
    axes.set_xlabel(f"{cost}, {unit}" if unit else cost, parse_math=False)
    axes.set_ylabel("estimated harm")
    if every and all(0 < point.harm < math.inf for point in every):
        plots.logarithmic(axes, "y")
    else:
        axes.set_yscale("symlog", linthresh=1e-6)
    axes.grid(color=plots.FAINT, linewidth=0.6)
    plots.legend(axes, lines, names)
    return figure


def _line(axes: Axes, name: str, front: Sequence[Allocation], cost: str, **style: Any) -> Line2D:
    """A line through allocations, and a mark with its numbers on each of them."""
    style = {"marker": "o", "markersize": 5, **style}
    x, y = [point.costs[cost] for point in front], [point.harm for point in front]
    [line] = axes.plot(x, y, **style)
    texts = [f"{name}: harm {v:.3g} at {cost} {c:,.6g}" for c, v in zip(x, y, strict=True)]
    plots.targets(axes, x, y, texts, style["color"])
    return line


def layer_bits(plan: Plan, width: float = plots.WIDE) -> Figure:
    """Weight, input and accumulator bits of every layer; no bar where a width is not limited."""
    planned = plan.layers.values()
    stored = {"weight": "weight_bits", "input": "input_bits"}  # whatever the format
    series = {what: [getattr(p, stored.get(what, what)) for p in planned] for what in _BITS}
    colours = [plots.KIND_COLOURS[kind] for kind in _BITS.values()]
    return plots.groups_of_bars(list(plan.layers), series, colours, "bits", width)


def sensitivity(problem: Problem, plan: Plan, width: float = plots.WIDE) -> Figure:
    """Harm of every layer as one of its widths changes; a star where the plan is."""
    figure, axes = plots.rows_of(problem.names, width)
    found: dict[str, list[tuple[float, int, str]]] = {what: [] for what in _STYLES}
    for row, (name, options) in enumerate(problem.choices.layers.items()):
        for option, harm in zip(options, problem.harm.single[row], strict=True):
            changed = [w for w in _STYLES if getattr(option, w, 0) != getattr(plan[name], w, 0)]
            if len(changed) <= 1:
                text = f"{name}: {_words(option)}: harm {harm:.3g}"
                found[changed[0] if changed else "plan"].append((harm, row, text))
    kinds = {
        what: plots.dots(axes, *zip(*dots, strict=True), **_STYLES[what])
        for what, dots in found.items()
        if dots
    }
    ends = [(harms.min(), harms.max()) for harms in problem.harm.single]
    axes.hlines(range(len(ends)), *zip(*ends, strict=True), color=plots.FAINT, zorder=0)
    if min(harm.min() for harm in problem.harm.single) > 0:
        plots.logarithmic(axes, "x")
    axes.set_xlabel("harm of the layer alone")
    names = {what: "plan" if what == "plan" else f"other {what}" for what in kinds}
    plots.legend(axes, list(kinds.values()), list(names.values()))
    return figure


def _words(choice: LayerPrecision) -> str:
    """A choice in a few words, such as "W4A8, accumulator 12, tile 64"."""
    text = f"W{choice.weight or '–'}A{choice.input or '–'}"
    for what in ("accumulator", "tile"):
        value = getattr(choice, what)
        text += "" if value is None else f", {what} {value}"
    return text


def _sensitivity(problem: Problem, plan: Plan) -> str:
    """A table: widths of every layer, and its harm with them and with its best and worst choice."""
    rows = []
    for (name, options), harm in zip(
        problem.choices.layers.items(), problem.harm.single, strict=True
    ):
        numbers = (harm[options.index(plan[name])], harm.min(), harm.max())
        cells = [*width_cells(name, plan[name]), *(significant(float(v)) for v in numbers)]
        rows.append((cells, ""))
    remark = "Harm of each layer alone; pairs of layers add to it." if problem.harm.pairs else None
    return table(_HEADINGS, rows, numbers=range(1, 8)) + paragraph(remark)
