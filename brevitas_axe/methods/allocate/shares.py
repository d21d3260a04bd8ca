"""Shares of a budget between groups of layers with metrics of their own (MixDQ, arXiv 2405.17873).

An integer program allocates the first group under its share of every budget, a second program the
other group under the rest, and the share is scanned. The result of a single program with one metric
for all layers is among the candidates, so that no group ends worse by its own metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.allocate.problem import Assignment, Problem, Quantity
from brevitas_axe.plan import Choices
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Shares:
    """Two groups, each with its own program, under the best of the scanned shares.

    Not monotone. Every candidate must be at least as good for both groups as the single-program
    baseline; a larger budget improves that baseline, so that an earlier trade-off may stop
    qualifying and the total harm may rise.

    Best means the least measured loss; without a measure, the least sum of the groups' harms, each
    divided by its harm under the single program with the first group's metric.

    Attributes:
        steps: shares tried besides the one that the single program gives the first group.
    """

    steps: int = 16
    exact = False
    monotone = False
    takes_target = False
    several_metrics = False
    needs_groups = True
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="harm by group of layers",
        export="finn",
        source="arXiv 2405.17873",
    )

    def __post_init__(self) -> None:
        check_ranges(self, steps=(0, inf))

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
    for linked in (*problem.harm.pairs, *problem.units):
        if set(linked) & set(first) and set(linked) & set(second):
            names = ", ".join(problem.names[i] for i in linked)
            raise InvalidOption(
                f"layers {names} share their input bits or their harm but are in different "
                "groups; put them into one group, or use the allocator 'ilp'."
            )


def _divided(
    problem: Problem,
    first: list[int],
    second: list[int],
    together: Assignment,
    share: float | None,
) -> list[Assignment]:
    """Assignments of the first group by itself, then of the second; none where one cannot fit.

    A share of None gives the first group what it costs in `together`. What two layers of different
    groups cost together (FINN's thresholds) is the second group's to pay: the first one's choices
    are then known.
    """
    costs = {name: _restricted(problem.costs[name], first) for name in problem.budgets}
    spent = {name: cost.total(tuple(together[i] for i in first)) for name, cost in costs.items()}
    if share is not None:
        spent = {name: limit * share for name, limit in problem.budgets.items()}
    try:
        alone = ilp(_part(problem, first, costs, spent))
        known = dict(zip(first, alone, strict=True))
        left = {n: limit - costs[n].total(alone) for n, limit in problem.budgets.items()}
        costs = {name: _restricted(problem.costs[name], second, known) for name in left}
        rest = dict(zip(second, ilp(_part(problem, second, costs, left)), strict=True))
    except InvalidOption:
        return []
    both = known | rest
    return [tuple(both[i] for i in range(len(together)))]


def _part(
    problem: Problem,
    group: list[int],
    costs: Mapping[str, Quantity],
    budgets: Mapping[str, float],
) -> Problem:
    """The allocation of one group of layers."""
    names = [problem.names[i] for i in group]
    choices = Choices(
        {name: problem.choices.layers[name] for name in names},
        tuple(tie for tie in problem.choices.same_input if tie[0] in names),
    )
    harm = _restricted(problem.harm, group)
    return replace(problem, choices=choices, harm=harm, costs=costs, budgets=budgets, parts={})


def _restricted(
    quantity: Quantity, group: list[int], known: Mapping[int, int] | None = None
) -> Quantity:
    """The quantity of one group; of its pairs with others, those with a known choice count."""
    known = known or {}
    place = {i: k for k, i in enumerate(group)}
    single = [quantity.single[i] for i in group]
    pairs = {}
    for (i, j), table in quantity.pairs.items():
        if i in place and j in place:
            pairs[place[i], place[j]] = table
        elif i in place and j in known:
            single[place[i]] = single[place[i]] + table[:, known[j]]
        elif j in place and i in known:
            single[place[j]] = single[place[j]] + table[known[i]]
    return Quantity(tuple(single), pairs)


shares = Shares()
