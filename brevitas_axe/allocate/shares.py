"""Shares of a budget between groups of layers with metrics of their own (MixDQ, arXiv 2405.17873).

Each group is allocated by an integer program of its own under its share of every budget, and the
share is scanned. What one program with one metric for all layers gives each group is among the
shares, so that no group is worse off, by its own metric, than with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from brevitas_axe.allocate.ilp import ilp
from brevitas_axe.allocate.problem import Assignment, Problem, Quantity
from brevitas_axe.errors import InvalidOption
from brevitas_axe.plan import Choices
from brevitas_axe.sensitivity.facts import Facts


@dataclass(frozen=True)
class Shares:
    """Two groups, each with its own program; of the shares, the best one.

    Best is the least measured loss, or else the least sum of the groups' harm, each in units of
    what the program with the first group's metric for all layers leaves it.

    Attributes:
        steps: shares tried besides that of the program for all layers.
    """

    steps: int = 16
    exact = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="harm by group of layers",
        export="finn",
        source="arXiv 2405.17873",
    )

    def __call__(self, problem: Problem) -> Assignment:
        if len(problem.parts) < 2:
            return ilp(problem)
        first, second = _members(problem)
        _check_apart(problem, first, second)
        metric = next(iter(problem.parts))
        together = ilp(replace(problem, harm=problem.metrics.get(metric, problem.harm)))
        own = [_restricted(problem.harm, group) for group in (first, second)]

        def harms(assignment: Assignment) -> list[float]:
            groups = zip(own, (first, second), strict=True)
            return [harm.total(tuple(assignment[i] for i in group)) for harm, group in groups]

        def relative(assignment: Assignment) -> float:
            return sum(
                h / b if b > 0 else h for h, b in zip(harms(assignment), before, strict=True)
            )

        before = harms(together)
        candidates = [together]
        for share in (None, *np.linspace(0, 1, self.steps + 2)[1:-1]):
            candidates += _divided(problem, first, second, together, share)
        no_worse = [
            a
            for a in candidates
            if problem.fits(a) and all(h <= b for h, b in zip(harms(a), before, strict=True))
        ]
        return min(no_worse, key=problem.measure or relative)


def _members(problem: Problem) -> tuple[list[int], list[int]]:
    if len(problem.parts) > 2:
        raise InvalidOption(
            f"shares are scanned between two groups of layers, not {len(problem.parts)}; join some."
        )
    named = next(iter(problem.parts.values()))
    inside = [name in named for name in problem.names]
    return [i for i, yes in enumerate(inside) if yes], [
        i for i, yes in enumerate(inside) if not yes
    ]


def _check_apart(problem: Problem, first: list[int], second: list[int]) -> None:
    paired = [p for q in (problem.harm, *problem.costs.values()) for p in q.pairs]
    for linked in (*paired, *problem.units):
        if set(linked) & set(first) and set(linked) & set(second):
            names = ", ".join(problem.names[i] for i in linked)
            raise InvalidOption(
                f"layers {names} depend on each other but are in different groups; put them into "
                "one group, or use the allocator 'ilp'."
            )


def _divided(
    problem: Problem,
    first: list[int],
    second: list[int],
    together: Assignment,
    share: float | None,
) -> list[Assignment]:
    """Both groups by themselves; nothing where a group's share is too small for it.

    A share of None gives the first group what it costs in `together`, and the second the rest.
    """
    chosen = list(together)
    try:
        for group, part in ((first, share), (second, None if share is None else 1 - share)):
            costs = {n: _restricted(problem.costs[n], group) for n in problem.budgets}
            spent = tuple(together[i] for i in group)
            budgets = {
                name: limit * part if part is not None else costs[name].total(spent)
                for name, limit in problem.budgets.items()
            }
            names = [problem.names[i] for i in group]
            choices = Choices(
                {name: problem.choices.layers[name] for name in names},
                tuple(tie for tie in problem.choices.same_input if tie[0] in names),
            )
            own = replace(
                problem,
                choices=choices,
                harm=_restricted(problem.harm, group),
                costs=costs,
                budgets=budgets,
                parts={},
            )
            for i, c in zip(group, ilp(own), strict=True):
                chosen[i] = c
    except InvalidOption:
        return []
    return [tuple(chosen)]


def _restricted(quantity: Quantity, group: list[int]) -> Quantity:
    place = {i: k for k, i in enumerate(group)}
    pairs = {(place[i], place[j]): m for (i, j), m in quantity.pairs.items() if i in place}
    return Quantity(tuple(quantity.single[i] for i in group), pairs)


shares = Shares()
