"""The page about an allocation says what was chosen, and by what."""

from __future__ import annotations

import re

import numpy as np

from brevitas_axe.allocate import allocate_bits, pareto
from brevitas_axe.report import layer_bits, pareto_front, write_allocation
from tests.allocate.problems import random_problem

PROBLEM = random_problem(1, 4, bops=0.4)
FOUND = allocate_bits(PROBLEM)
LIMITS = np.linspace(0.1, 1, 6) * PROBLEM.costs["bops"].extreme(np.max)
FRONTS = {name: pareto(PROBLEM, "bops", LIMITS, name) for name in ("ilp", "uniform")}


def test_every_layer_has_a_bar_per_width() -> None:
    (axes,) = layer_bits(FOUND.plan).axes
    drawn = [round(bar.get_width()) for bars in axes.containers for bar in bars]
    plan = FOUND.plan.layers.values()
    assert drawn == [
        bits
        for what in ("weight", "input", "accumulator")
        for bits in (getattr(p, what) for p in plan)
    ]


def test_fronts_are_drawn_where_they_are() -> None:
    (axes,) = pareto_front(FRONTS, "bops", found=FOUND).axes
    ours, uniform, star = axes.lines
    assert np.asarray(ours.get_ydata()).tolist() == [point.harm for point in FRONTS["ilp"]]
    assert np.asarray(uniform.get_xdata()).tolist() == [
        point.costs["bops"] for point in FRONTS["uniform"]
    ]
    assert np.asarray(star.get_xdata()).tolist() == [FOUND.costs["bops"]]


def test_the_table_tells_the_harm_of_what_was_chosen(tmp_path) -> None:
    path = tmp_path / "report.html"
    write_allocation(path, PROBLEM, FOUND, FRONTS, "bops", "bit operations")
    page = path.read_text()
    name, options = next(iter(PROBLEM.choices.layers.items()))
    harm = PROBLEM.harm.single[0]
    chosen = harm[options.index(FOUND.plan[name])]
    row = re.search(f"{name}</span></td>(.*?)</tr>", page)
    assert row is not None
    for value in (chosen, harm.min(), harm.max()):
        assert f">{float(value):.3g}<" in row[1]
