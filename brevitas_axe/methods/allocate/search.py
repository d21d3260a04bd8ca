"""Whole plans, found by integer programs with perturbed weights, are measured; ours.

The integer program trusts per-layer estimates, so that its optimum exploits their errors. This
allocator perturbs the per-layer weights, solves again, measures each new plan, and continues from
the best one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate.greedy import greedy
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.allocate.problem import Assignment, Problem, Quantity
from brevitas_axe.methods.allocate.uniform import uniform
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Search:
    """The least measured loss among uniform, greedy and the optima of several integer programs.

    A problem's `metrics` are further estimates of harm: each has a program of its own, and the
    weights of the one with the best plan are perturbed.

    Without a measure this is the integer program. With one it is not monotone: under a larger
    budget other plans are found and measured, and all of them may have more harm or loss.

    Attributes:
        trials: programs with varied weights; each new optimum is measured once.
        spread: standard deviation of the logarithm of a weight's change.
        seed: of the changes.
    """

    trials: int = 16
    spread: float = 0.5
    seed: int = 0
    exact = False
    monotone = False
    takes_target = False
    several_metrics = True
    needs_groups = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="harm and measured loss of plans",
        export="finn",
        source="ours",
    )

    def __post_init__(self) -> None:
        check_ranges(self, trials=(0, inf), spread=(0, inf), seed=(0, inf))

    def __call__(self, problem: Problem) -> Assignment:
        if problem.measure is None:
            return ilp(problem)
        losses: dict[Assignment, float] = {}

        def loss(assignment: Assignment) -> float:
            assert problem.measure is not None
            if assignment not in losses:
                losses[assignment] = problem.measure(assignment)
            return losses[assignment]

        harms = (problem.harm, *problem.metrics.values())
        programs = {ilp(p): p for p in (replace(problem, harm=harm) for harm in harms)}
        best = min(programs, key=loss)
        program = programs[best]
        for other in (uniform, greedy):
            with suppress(InvalidOption):  # it may find nothing that fits where the program did
                loss(other(problem))
        weights = np.ones(len(problem.units))
        for change in self._changes(len(weights)):
            found = ilp(replace(program, harm=_weighted(program, weights * change)))
            if loss(found) < losses[best]:
                best, weights = found, weights * change
        return min(losses, key=losses.__getitem__)

    def _changes(self, count: int) -> Iterator[np.ndarray]:
        random = np.random.default_rng(self.seed)
        for _ in range(self.trials):
            yield np.exp(random.normal(0, self.spread, count))


def _weighted(problem: Problem, weights: np.ndarray) -> Quantity:
    """Harm in which what a unit adds alone is multiplied by the unit's weight."""
    single = list(problem.harm.single)
    for unit, weight in zip(problem.units, weights, strict=True):
        for i in unit:
            single[i] = single[i] * weight
    return Quantity(tuple(single), problem.harm.pairs)


search = Search()
