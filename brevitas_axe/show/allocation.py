"""One page about an allocation: front, bits of every layer, and the scores behind them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import chain
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import write_whole
from brevitas_axe.methods.allocate import Allocation, Problem
from brevitas_axe.plan import Plan
from brevitas_axe.show import plots
from brevitas_axe.show.origin import origin, told
from brevitas_axe.show.parts import document, drawing, paragraph, significant, table, width_cells

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
        paragraph(told(origin())),
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
    """Estimated harm against a cost, one line per allocator; a star where `found` is.

    Raises:
        InvalidOption: an allocation has no such cost.
    """
    for point in (*chain(*fronts.values()), *([] if found is None else [found])):
        if cost not in point.costs:
            raise InvalidOption(
                f"an allocation has no cost '{cost}', only: {', '.join(point.costs)}; sweep one of "
                "those."
            )
    figure, axes = plots.axes_of(6.4, 3.4)
    colours = list(plots.KIND_COLOURS.values())[::-1]
    lines = [
        axes.plot(
            [point.costs[cost] for point in front],
            [point.harm for point in front],
            marker="o",
            markersize=4,
            linestyle=("-", "--", ":", "-.")[index % 4],
            # Styles and colours have cycles of different lengths, so that their pairs do not
            # repeat.
            color=colours[(index + index // 4) % 4],
        )[0]
        for index, front in enumerate(fronts.values())
    ]
    names = list(fronts)
    if found is not None:
        lines += axes.plot(found.costs[cost], found.harm, "*", markersize=13, color="#e08e2b")
        names.append("plan")
    axes.set_xlabel(f"{cost}, {unit}" if unit else cost, parse_math=False)
    axes.set_ylabel("estimated harm")
    axes.set_yscale("symlog", linthresh=1e-6)
    axes.grid(color=plots.FAINT, linewidth=0.6)
    plots.legend(axes, lines, names)
    return figure


def layer_bits(plan: Plan) -> Figure:
    """Weight, input and accumulator bits of every layer; no bar where a width is not limited."""
    figure, axes = plots.rows_of(list(plan.layers))
    for place, (what, kind) in enumerate(_BITS.items()):
        values = [getattr(precision, what) or 0 for precision in plan.layers.values()]
        at = np.arange(len(values)) + 0.26 * (place - 1)
        axes.barh(at, values, color=plots.KIND_COLOURS[kind], height=0.24)
    axes.set_xlabel("bits")
    # Above the bars, which leave no room between them.
    plots.legend(axes, axes.containers, list(_BITS), outside=True)
    return figure


def _sensitivity(problem: Problem, plan: Plan) -> str:
    """A table: widths of every layer, and its harm with them and with its best and worst choice."""
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
    remark = "Harm of each layer alone; pairs of layers add to it." if problem.harm.pairs else None
    return table(headings, rows, numbers=range(1, 8)) + paragraph(remark)
