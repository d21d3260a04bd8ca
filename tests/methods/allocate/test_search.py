"""Programs with varied weights, measured."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brevitas_axe.methods.allocate import Problem, Quantity
from brevitas_axe.methods.allocate.greedy import greedy
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.allocate.search import Search, search
from brevitas_axe.methods.allocate.uniform import uniform
from tests.methods.allocate.problems import random_problem, with_measure


def misjudged(seed: int, tied: bool = False) -> Problem:
    return with_measure(random_problem(seed, 6, tied=tied, bops=0.3, memory=0.5), seed)


@pytest.mark.parametrize("tied", [False, True])
def test_wrong_weights_of_layers_are_mended(tied) -> None:
    gains = []
    for seed in range(4):
        problem = misjudged(seed, tied)
        assert problem.measure is not None
        found = Search(trials=12)(problem)
        assert problem.fits(found)
        first = problem.measure(ilp(problem))
        assert problem.measure(found) <= first
        gains.append(problem.measure(found) / first)
    assert min(gains) < 0.9


@pytest.mark.parametrize("seed", range(4))
def test_never_worse_than_others_by_any_measure_each_plan_measured_once(seed) -> None:
    noise = np.random.default_rng(seed)
    losses: dict[tuple[int, ...], float] = {}

    def measure(assignment: tuple[int, ...]) -> float:
        assert assignment not in losses
        losses[assignment] = float(noise.normal())
        return losses[assignment]

    problem = replace(misjudged(seed), measure=measure)
    found = Search(trials=6)(problem)
    assert losses[found] == min(losses.values())
    assert {uniform(problem), greedy(problem), ilp(problem)} <= set(losses)


def test_a_metric_that_judges_better_is_found_and_searched_around() -> None:
    problem = misjudged(0)
    known = random_problem(0, 6, bops=0.3, memory=0.5).harm
    assert problem.measure is not None
    units = np.eye(len(problem.names), dtype=int)
    assert known.pairs == {}
    # What is measured, layer by layer: the right harm.
    true = Quantity(
        tuple(
            np.array([problem.measure(tuple(c * unit)) for c in range(len(single))])
            - problem.measure((0,) * len(units))
            for unit, single in zip(units, known.single, strict=True)
        )
    )
    best = ilp(replace(problem, harm=true))
    assert problem.measure(best) < problem.measure(Search(trials=0)(problem))
    informed = replace(problem, metrics={"wrong": known, "right": true})
    assert Search(trials=0)(informed) == best
    assert problem.measure(Search(trials=4)(informed)) == problem.measure(best)


def test_without_a_measure_it_is_the_program() -> None:
    problem = random_problem(0, 6, pairs=True, bops=0.3)
    assert search(problem) == ilp(problem)
