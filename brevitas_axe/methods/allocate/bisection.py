"""Bisection over an ordering of layers (arXiv 2306.04879): the fewest bits at a wanted quality.

For every precision, from the widest down, layers are ordered by what they would lose, losses that
they cause together with others included. The longest prefix of this order that still meets the
target gets the precision. No public code exists; this is our reconstruction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import inf

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Bisection:
    """With a target, the longest prefixes that meet it; without, the prefix that fits the budgets.

    Quality is not monotone in the prefix, so the best assignment seen that meets the target is kept
    and measured once more before it is returned. Without a target, all prefixes are looked at,
    which costs nothing because their harm is added up and not measured.

    Attributes:
        interactions: weight λ of what a layer loses together with others, in the order.
    """

    interactions: float = 1.0
    exact = False
    monotone = True
    takes_target = True
    several_metrics = False
    needs_groups = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="measured loss of prefixes",
        export="finn",
        source="arXiv 2306.04879 (reconstruction)",
    )

    def __post_init__(self) -> None:
        check_ranges(self, interactions=(0, inf))

    def __call__(self, problem: Problem) -> Assignment:
        if problem.target is None:
            return problem.least_harm(self._prefixes(problem))
        if problem.measure is None:
            raise InvalidOption("bisection towards a target measures the loss; give it a model.")
        return self._towards(problem, problem.target, problem.measure)

    def order(self, problem: Problem, rung: Assignment) -> list[int]:
        """Units in ascending order of A_i = S_i + λ Σ_j D_ij, at the precision of one rung."""

        def loss(unit: tuple[int, ...]) -> float:
            alone = sum(problem.harm.single[i][rung[i]] for i in unit)
            pairs = problem.harm.pairs.items()
            together = [m[rung[i], rung[j]] for (i, j), m in pairs if i in unit or j in unit]
            return alone + self.interactions * sum(together)

        return sorted(range(len(problem.units)), key=lambda u: loss(problem.units[u]))

    def _prefixes(self, problem: Problem) -> Iterator[Assignment]:
        current = problem.ladder[0]
        yield current
        for rung in problem.ladder[1:]:
            for unit in self.order(problem, rung):
                current = _moved(problem, current, rung, [unit])
                yield current

    def _towards(
        self, problem: Problem, target: float, measure: Callable[[Assignment], float]
    ) -> Assignment:
        best = problem.ladder[0]
        if measure(best) > target:
            raise InvalidOption(
                f"even the widest choices miss the target of {target:g}; allow more loss."
            )
        inside = set(range(len(problem.units)))
        for rung in problem.ladder[1:]:
            order = [unit for unit in self.order(problem, rung) if unit in inside]
            start, low, high = best, 0, len(order)
            while low < high:
                middle = (low + high + 1) // 2
                candidate = _moved(problem, start, rung, order[:middle])
                if measure(candidate) <= target:
                    low = middle
                    best = min(best, candidate, key=problem.expense)
                else:
                    high = middle - 1
            inside = set(order[:low])
        if measure(best) > target or not problem.fits(best):
            raise problem.refusal()
        return best


def _moved(
    problem: Problem, assignment: Assignment, rung: Assignment, units: list[int]
) -> Assignment:
    """The assignment with some units moved to another rung of the ladder."""
    layers = {i for unit in units for i in problem.units[unit]}
    return tuple(rung[i] if i in layers else c for i, c in enumerate(assignment))


bisection = Bisection()
