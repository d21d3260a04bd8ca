"""The best bargain first."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from brevitas_axe.methods.allocate.greedy import EPSILON, Greedy, measured_path, path
from tests.methods.allocate.problems import random_problem


@pytest.mark.parametrize("seed", range(5))
def test_greedy_makes_the_model_cheaper_with_every_move(seed) -> None:
    problem = random_problem(seed, 5, tied=True)
    steps = list(path(problem))
    assert len(steps) > 10
    expenses = [problem.expense(a) for a in steps]
    assert all(after < before for before, after in pairwise(expenses))
    assert all(problem.is_tied(a) for a in steps)


def curved(problem):
    """The problem with a measured loss in which choices make each other worse."""

    def measure(assignment) -> float:
        return problem.harm.total(assignment) + 0.5 * sum(assignment) ** 2

    return replace(problem, measure=measure)


@pytest.mark.parametrize("seed", range(5))
def test_measured_anew_the_loss_is_no_larger_than_that_of_any_uniform_plan(seed) -> None:
    problem = curved(random_problem(seed, 4, tied=True))
    found = Greedy(remeasure=True)(problem)
    assert problem.fits(found)
    assert problem.measure is not None
    fitting = [a for a in problem.uniform if problem.fits(a)]
    assert all(problem.measure(found) <= problem.measure(a) for a in fitting)


def test_each_move_is_the_best_one_by_what_is_measured_there() -> None:
    problem = curved(random_problem(1, 4))
    assert problem.measure is not None
    for before, after in pairwise(measured_path(problem, problem.measure)):
        assert problem.expense(after) < problem.expense(before)
        rise = problem.measure(after) - problem.measure(before)
        gain = (problem.expense(before) - problem.expense(after)) / (max(rise, 0.0) + EPSILON)
        for i, options in enumerate(problem.options):
            for k in range(len(options)):
                other = tuple(k if j == i else c for j, c in enumerate(before))
                saved = problem.expense(before) - problem.expense(other)
                worse = problem.measure(other) - problem.measure(before)
                if saved > 1e-12 and rise > 0 and worse > 0:
                    assert saved / (worse + EPSILON) <= gain * (1 + 1e-9)


def test_without_a_measure_it_uses_the_scores() -> None:
    problem = random_problem(2, 4, tied=True)
    assert Greedy(remeasure=True)(problem) == Greedy()(problem)
    assert Greedy().monotone
    assert not Greedy(remeasure=True).monotone
