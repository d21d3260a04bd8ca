"""Greedy mixed precision, largest saving per harm first (MPTQ-ViT, arXiv 2401.14895, 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache

from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.registry import Facts

Moves = Mapping[int, int]
Measure = Callable[[Assignment], float]
# Keeps the ratio finite where a move does no harm; small against any harm that matters.
EPSILON = 1e-12


@dataclass(frozen=True)
class Greedy:
    """From the widest precision, repeatedly the move with the largest saving per added harm.

    A move changes one layer without its input bits, or the input bits of all layers that share
    them. The saving is the fall of `Problem.expense`, which falls with every move; so the path does
    not depend on the budgets; of its assignments within budget, the least harmful is returned. Harm
    is the sum of scores, pairs included.

    Attributes:
        remeasure: the loss is measured anew for every move from where the path is, as published;
            a problem without a measure uses the scores. The path ends where the budgets are met.
            The least measured loss decides between its end and the uniform assignments. Each step
            measures the moves of every layer once: for small models, or few choices.
    """

    remeasure: bool = False
    exact = False
    takes_target = False
    several_metrics = False
    needs_groups = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="saving per harm",
        export="finn",
        source="arXiv 2401.14895",
    )

    @property
    def monotone(self) -> bool:
        """Whether a larger budget never gives more harm; a measured path ends with its budget."""
        return not self.remeasure

    def __call__(self, problem: Problem) -> Assignment:
        if not self.remeasure or problem.measure is None:
            return problem.least_harm(path(problem))
        measure = cache(problem.measure)
        reached = next((a for a in measured_path(problem, measure) if problem.fits(a)), None)
        found = [a for a in (reached, *problem.uniform) if a is not None and problem.fits(a)]
        if not found:
            raise problem.refusal()
        return min(found, key=measure)


def measured_path(problem: Problem, measure: Measure) -> Iterator[Assignment]:
    """`path` with the rise of the measured loss as the harm of a move."""
    assignment = problem.uniform[0]
    while True:
        yield assignment
        offers = [
            offer
            for unit in problem.units
            if (offer := _best_move(problem, assignment, unit, measure))
        ]
        if not offers:
            return
        _, moves = max(offers, key=lambda offer: offer[0])
        assignment = _moved(assignment, moves)


def _moved(assignment: Assignment, moves: Moves) -> Assignment:
    return tuple(moves.get(i, choice) for i, choice in enumerate(assignment))


def path(problem: Problem) -> Iterator[Assignment]:
    """The widest assignment, then the assignment after every move, until no move saves."""
    assignment = problem.uniform[0]
    yield assignment
    best: dict[int, tuple[float, Moves] | None] = {
        u: _best_move(problem, assignment, unit) for u, unit in enumerate(problem.units)
    }
    neighbours = _neighbours(problem)
    while True:
        offers = [(offer[0], -u) for u, offer in best.items() if offer is not None]
        if not offers:
            return
        moved = -max(offers)[1]
        offer = best[moved]
        assert offer is not None
        assignment = _moved(assignment, offer[1])
        yield assignment
        for u in neighbours[moved]:
            best[u] = _best_move(problem, assignment, problem.units[u])


def _best_move(
    problem: Problem,
    assignment: Assignment,
    unit: tuple[int, ...],
    measure: Measure | None = None,
) -> tuple[float, Moves] | None:
    """(saving per harm, moves) of the best move of one unit; None where no move lowers the cost.

    Harm is estimated, or measured where there is a measure.
    """
    best: tuple[float, Moves] | None = None
    for moves in _moves(problem, assignment, unit):
        saving = -problem.expense_change(assignment, moves)
        if saving <= 1e-15:
            continue
        if measure is None:
            harm = problem.harm.change(assignment, moves)
        else:
            harm = measure(_moved(assignment, moves)) - measure(assignment)
        # A move that lowers the harm comes before all others; of several, the one that lowers it
        # most.
        ratio = saving / (max(harm, 0.0) + EPSILON) - min(harm, 0.0) / EPSILON
        if best is None or ratio > best[0]:
            best = ratio, moves
    return best


def _moves(problem: Problem, assignment: Assignment, unit: tuple[int, ...]) -> Iterator[Moves]:
    for i in unit:
        now = problem.options[i][assignment[i]]
        for k, choice in enumerate(problem.options[i]):
            if k != assignment[i] and (len(unit) == 1 or choice.input == now.input):
                yield {i: k}
    if len(unit) > 1:
        for bits in problem.input_widths(unit):
            yield {
                i: problem.closest(i, replace(problem.options[i][assignment[i]], input=bits))
                for i in unit
            }


def _neighbours(problem: Problem) -> list[set[int]]:
    """Units whose best move may change when a unit moves: itself and those it has pairs with."""
    unit_of = {i: u for u, unit in enumerate(problem.units) for i in unit}
    result = [{u} for u in range(len(problem.units))]
    for quantity in (problem.harm, *problem.costs.values()):
        for i, j in quantity.pairs:
            result[unit_of[i]].add(unit_of[j])
            result[unit_of[j]].add(unit_of[i])
    return result


greedy = Greedy()
