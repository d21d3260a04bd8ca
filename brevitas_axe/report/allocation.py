"""One page about an allocation: the front, the bits of every layer, what they were chosen by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from brevitas_axe.allocate import Allocation, Problem
from brevitas_axe.files import write_whole
from brevitas_axe.plan import Plan
from brevitas_axe.report import plots
from brevitas_axe.report.page import document, drawing, significant, table, width_cells

_BITS = {"weight": "ours", "input": "published", "accumulator": "reference"}


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
        fronts: allocator → its allocations, see `brevitas_axe.allocate.pareto`.
        swept: name of the cost along the front.
        unit: of that cost.
    """
    spent = [
        [escape(name), significant(found.costs[name]), significant(float(limit))]
        for name, limit in problem.budgets.items()
    ]
    body = [
        "<h2>Budgets</h2>",
        table(["cost", "spent", "budget"], [(cells, "") for cells in spent], numbers=[1, 2]),
        "<h2>Harm against cost</h2>",
        drawing(pareto_front(fronts, swept, unit, found), f"harm against {swept}"),
        "<h2>Bits of every layer</h2>",
        drawing(layer_bits(found.plan), "bits of every layer"),
        "<h2>Sensitivity</h2>",
        _sensitivity(problem, found.plan),
    ]
    write_whole(path, document("Bits for every layer", body).encode())


def pareto_front(
    fronts: Mapping[str, Sequence[Allocation]],
    cost: str,
    unit: str = "",
    found: Allocation | None = None,
) -> Figure:
    """Estimated harm against a cost, one line per allocator; a star where `found` is."""
    figure, axes = plots.axes_of(6.4, 3.4)
    colours = plots.KIND_COLOURS.values()
    for index, (name, front) in enumerate(fronts.items()):
        axes.plot(
            [point.costs[cost] for point in front],
            [point.harm for point in front],
            marker="o",
            markersize=4,
            linestyle=("-", "--", ":", "-.")[index % 4],
            color=list(colours)[::-1][index % 4],
            label=name,
        )
    if found is not None:
        axes.plot(found.costs[cost], found.harm, "*", markersize=13, color="#e08e2b", label="plan")
    axes.set_xlabel(f"{cost}, {unit}" if unit else cost)
    axes.set_ylabel("estimated harm")
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.grid(color=plots.FAINT, linewidth=0.6)
    axes.legend(frameon=False, fontsize=8, labelcolor=plots.INK)
    return figure


def layer_bits(plan: Plan) -> Figure:
    """Weight, input and accumulator bits of every layer; no bar where a width is not limited."""
    figure, axes = plots.rows_of(list(plan.layers))
    for place, (what, kind) in enumerate(_BITS.items()):
        values = [getattr(precision, what) or 0 for precision in plan.layers.values()]
        at = np.arange(len(values)) + 0.26 * (place - 1)
        axes.barh(at, values, color=plots.KIND_COLOURS[kind], height=0.24, label=what)
    axes.set_xlabel("bits")
    axes.legend(frameon=False, fontsize=8, labelcolor=plots.INK)
    return figure


def _sensitivity(problem: Problem, plan: Plan) -> str:
    """Every layer's widths and its harm with them, with its best and with its worst choice."""
    rows = []
    for (name, options), harm in zip(
        problem.choices.layers.items(), problem.harm.single, strict=True
    ):
        chosen = plan[name]
        cells = [
            *width_cells(name, chosen),
            *(significant(float(v)) for v in (harm[options.index(chosen)], harm.min(), harm.max())),
        ]
        rows.append((cells, ""))
    headings = ["layer", "weight", "input", "accumulator", "tile", "harm", "least", "most"]
    return table(headings, rows, numbers=range(1, 8))
