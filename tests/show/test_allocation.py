"""The page about an allocation says what was chosen, and by what."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Allocation, Problem, allocate_bits, pareto
from brevitas_axe.plan import Choices, Plan
from brevitas_axe.show import layer_bits, pareto_front, plots, write_allocation
from tests.methods.allocate.problems import random_problem
from tests.show.markup import HOSTILE, read

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


def test_fronts_of_many_allocators_are_told_apart() -> None:
    names = ["bisection", "clustering", "greedy", "ilp", "search", "shares", "uniform", "_own"]
    figure = pareto_front(dict.fromkeys(names, FRONTS["ilp"]), "bops")
    (axes,) = figure.axes
    assert len({(line.get_color(), line.get_linestyle()) for line in axes.lines}) == len(names)
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == names


def test_a_front_of_one_point_of_none_or_of_what_is_not_finite_is_drawn() -> None:
    odd = [replace(FOUND, harm=math.inf), replace(FOUND, harm=math.nan)]
    for fronts in ({"ilp": [FOUND]}, {"ilp": []}, {}, {"ilp": odd}):
        assert plots.svg(pareto_front(fronts, "bops")).startswith("<svg")


def test_a_cost_that_no_allocation_has_is_refused() -> None:
    for found in (FOUND, None):
        fronts = FRONTS if found is None else {}
        with pytest.raises(InvalidOption, match="no cost 'lut', only: bops, memory"):
            pareto_front(fronts, "lut", found=found)


def renamed(name: str) -> tuple[Problem, Allocation]:
    """One layer and one cost, both of this name, under a budget."""
    lone = random_problem(1, 1)
    [choices], cost = lone.choices.layers.values(), lone.costs["bops"]
    limit = cost.extreme(np.max) / 2
    problem = replace(
        lone, choices=Choices({name: choices}), costs={name: cost}, budgets={name: limit}
    )
    return problem, allocate_bits(problem)


def test_every_name_is_escaped_and_no_name_is_a_formula(tmp_path) -> None:
    problem, found = renamed(HOSTILE)
    path = tmp_path / "report.html"
    write_allocation(path, problem, found, {HOSTILE: [found]}, HOSTILE, HOSTILE)
    page = read(path.read_text())
    assert "script" not in page.tags
    assert page.text.count(HOSTILE) == 2  # the budget and the layer
    assert any(HOSTILE in told for told in page.hovered)


def test_a_page_is_whole_or_not_there(tmp_path) -> None:
    with pytest.raises(InvalidOption, match="no cost 'lut'"):
        write_allocation(tmp_path / "report.html", PROBLEM, FOUND, FRONTS, "lut")
    assert not list(tmp_path.iterdir())


def test_budgets_are_told_with_the_digits_that_decide(tmp_path) -> None:
    budgets = {"bops": 123456.0}
    found = replace(FOUND, costs={**FOUND.costs, "bops": 123449.0})
    write_allocation(tmp_path / "a.html", replace(PROBLEM, budgets=budgets), found, {}, "bops")
    text = read((tmp_path / "a.html").read_text()).text
    assert {"123456", "123449"} <= set(text)


@pytest.mark.parametrize("pairs", [False, True])
def test_harm_that_is_not_a_layer_s_own_is_mentioned(pairs, tmp_path) -> None:
    problem = random_problem(1, 3, pairs=pairs, bops=0.5)
    write_allocation(tmp_path / "a.html", problem, allocate_bits(problem), {}, "bops")
    assert ("pairs of layers add to it" in (tmp_path / "a.html").read_text()) == pairs


def test_the_page_holds_all_drawings_and_all_layers_of_a_large_model(tmp_path) -> None:
    problem = random_problem(1, 60)
    found = allocate_bits(problem)
    write_allocation(tmp_path / "a.html", problem, found, {"ilp": [found]}, "bops")
    page = read((tmp_path / "a.html").read_text())
    drawn = ["harm against bops", "bits of every layer", "harm of the choices of every layer"]
    assert page.described == [each for each in drawn for _ in ("wide", "narrow")]
    assert {f"layer{i}" for i in range(60)} <= set(page.text)
    for row, (name, harms) in enumerate(zip(problem.names, problem.harm.single, strict=True)):
        chosen = float(harms[problem.options[row].index(found.plan[name])])
        assert any(t.startswith(f"{name}: W") and t.endswith(f"{chosen:.3g}") for t in page.hovered)
    assert min(page.sizes) >= plots.TEXT


def test_labels_of_many_layers_do_not_overlap_and_the_legend_covers_no_bar() -> None:
    figure = layer_bits(Plan.uniform([f"layer{i}" for i in range(200)], FOUND.plan["layer0"]))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 > lower.y1 for upper, lower in pairwise(boxes))
    legend = axes.get_legend()
    assert legend is not None
    assert legend.get_window_extent().y0 >= axes.get_window_extent().y1


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
