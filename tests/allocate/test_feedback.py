"""Harm corrected by measured losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brevitas_axe.allocate import Problem, Quantity
from brevitas_axe.allocate.feedback import Feedback, feedback
from brevitas_axe.allocate.ilp import ilp
from brevitas_axe.allocate.uniform import uniform
from tests.allocate.problems import random_problem


def misjudged(seed: int, tied: bool = False) -> tuple[Problem, Problem]:
    """A problem whose harm is wrong by a factor per layer, and the same with the true harm."""
    problem = random_problem(seed, 6, tied=tied, bops=0.3, memory=0.5)
    factors = 10 ** np.random.default_rng(seed).uniform(-0.8, 0.8, 6)
    if tied:
        factors[1] = factors[0]
    true = Quantity(tuple(f * h for f, h in zip(factors, problem.harm.single, strict=True)))
    return replace(problem, measure=true.total), replace(problem, harm=true)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("seed", range(6))
def test_wrong_factors_of_layers_are_found(seed, tied) -> None:
    problem, true = misjudged(seed, tied)
    found = feedback(problem)
    assert problem.fits(found)
    assert true.harm.total(found) == pytest.approx(true.harm.total(ilp(true)), rel=1e-9)


def test_some_of_these_need_a_correction() -> None:
    both = [misjudged(seed) for seed in range(6)]
    assert any(true.harm.total(ilp(p)) > 1.05 * true.harm.total(ilp(true)) for p, true in both)


@pytest.mark.parametrize("seed", range(6))
def test_never_worse_than_uniform_or_the_program_by_any_measure(seed) -> None:
    problem, _ = misjudged(seed)
    noise = np.random.default_rng(seed)
    losses: dict[tuple[int, ...], float] = {}

    def measure(assignment: tuple[int, ...]) -> float:
        return losses.setdefault(assignment, float(noise.normal()))

    problem = replace(problem, measure=measure)
    found = Feedback(rounds=1)(problem)
    assert measure(found) <= min(measure(uniform(problem)), measure(ilp(problem)))


def test_without_a_measure_it_is_the_program() -> None:
    problem = random_problem(0, 6, pairs=True, bops=0.3)
    assert feedback(problem) == ilp(problem)
