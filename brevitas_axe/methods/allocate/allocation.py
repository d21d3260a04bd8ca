"""From scores and budgets to a plan, by any allocator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from brevitas_axe.display import cell, html_table, one_line
from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate.checks import check_target
from brevitas_axe.methods.allocate.problem import Problem, Quantity
from brevitas_axe.methods.allocate.protocol import Allocator
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.plan import Plan
from brevitas_axe.registry import method


@dataclass(frozen=True)
class Allocation:
    """What an allocator found.

    Attributes:
        plan: the widths.
        harm: estimated; in the units of the scores.
        costs: name → cost of the plan.
    """

    plan: Plan
    harm: float
    costs: Mapping[str, float]

    def __repr__(self) -> str:
        costs = ", ".join(
            f"{one_line(name)} {cell(float(cost))}" for name, cost in self.costs.items()
        )
        return f"Allocation(harm {cell(float(self.harm))}, {costs or 'no costs'}, {self.plan!r})"

    def _repr_html_(self) -> str:
        costs = html_table(repr(self), ["cost", "value"], self.costs.items())
        return f"{costs}\n{self.plan._repr_html_()}"


def make_problem(
    scores: Scores,
    costs: Mapping[str, Quantity],
    budgets: Mapping[str, float],
    measure: Callable[[Plan], float] | None = None,
    target: float | None = None,
) -> Problem:
    """Scores and costs by layer index.

    Args:
        scores: of all choices.
        costs: name → cost, see `cost_table`.
        budgets: name → most that the cost may be.
        measure: function from a plan to its measured rise of the loss, for allocators that use it.
        target: largest measured rise that is allowed, for allocators that take a target.
    """
    names = list(scores.choices.layers)
    index = {name: i for i, name in enumerate(names)}
    pairs = {}
    for (first, second), table in scores.pairs.items():
        i, j = index[first], index[second]
        pairs[(i, j) if i < j else (j, i)] = table if i < j else table.T
    problem = Problem(
        choices=scores.choices,
        harm=Quantity(tuple(scores.harm[name] for name in names), pairs),
        costs=costs,
        budgets=budgets,
        target=target,
        parts=scores.parts,
        metrics={m: Quantity(tuple(t[n] for n in names)) for m, t in scores.metrics.items()},
    )
    if measure is None:
        return problem
    return replace(problem, measure=lambda assignment: measure(problem.plan(assignment)))


def allocate_bits(problem: Problem, allocator: str | Allocator = "ilp") -> Allocation:
    """Runs an allocator, and checks what it returns.

    Args:
        problem: scores, costs and budgets.
        allocator: registered name, with options or without ("NAME:key=value"), or an allocator.

    Raises:
        InvalidOption: nothing fits the budgets, or there is a target that would be ignored.
    """
    check_target(problem.target, allocator)
    assignment = method("allocate", allocator)(problem)
    if not problem.fits(assignment):
        raise InvalidOption(
            f"the allocator {allocator!r} returned widths that break a budget or a tie; repair it, "
            "or use another one."
        )
    costs = {name: cost.total(assignment) for name, cost in problem.costs.items()}
    return Allocation(problem.plan(assignment), problem.harm.total(assignment), costs)


def pareto(
    problem: Problem, budget: str, limits: Iterable[float], allocator: str | Allocator = "ilp"
) -> list[Allocation]:
    """Allocations under a swept budget that no other one of them beats, cheapest first.

    Args:
        problem: its other budgets stay.
        budget: the one to sweep.
        limits: values of it; those at which nothing fits are left out.
        allocator: see `allocate_bits`.
    """
    front: list[Allocation] = []
    for limit in sorted(limits):
        swept = replace(problem, budgets={**problem.budgets, budget: limit})
        try:
            found = allocate_bits(swept, allocator)
        except InvalidOption:
            continue
        if not front or found.harm < front[-1].harm:
            front.append(found)
    return front
