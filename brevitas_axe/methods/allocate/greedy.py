"""Greedy mixed precision, largest saving per harm first (MPTQ-ViT, arXiv 2401.14895, 3.4)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.registry import Facts

Moves = Mapping[int, int]
# Keeps the ratio finite where a move does no harm; small against any harm that matters.
EPSILON = 1e-12


@dataclass(frozen=True)
class Greedy:
    """From the widest precision, repeatedly the move with the largest saving per added harm.

    A move changes one layer without its input bits, or the input bits of all layers that share
    them. The saving is the fall of `Problem.expense`, which falls with every move; so the path does
    not depend on the budgets; of its assignments within budget, the least harmful is returned. The
    paper measures the loss again after every move; ours adds up scores, pairs included.
    """

    exact = False
    monotone = True
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

    def __call__(self, problem: Problem) -> Assignment:
        return problem.least_harm(path(problem))


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
        assignment = tuple(offer[1].get(i, c) for i, c in enumerate(assignment))
        yield assignment
        for u in neighbours[moved]:
            best[u] = _best_move(problem, assignment, problem.units[u])


def _best_move(
    problem: Problem, assignment: Assignment, unit: tuple[int, ...]
) -> tuple[float, Moves] | None:
    """(saving per harm, moves) of the best move of one unit; None where no move lowers the cost."""
    best: tuple[float, Moves] | None = None
    for moves in _moves(problem, assignment, unit):
        saving = -problem.expense_change(assignment, moves)
        if saving <= 1e-15:
            continue
        harm = problem.harm.change(assignment, moves)
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
