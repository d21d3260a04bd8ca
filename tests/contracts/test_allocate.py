"""What every registered allocator promises, on random problems."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import (
    Allocator,
    Problem,
    Quantity,
    allocate_bits,
    check_groups,
    check_metrics,
    pareto,
)
from brevitas_axe.plan import Choices
from brevitas_axe.registry import methods
from tests.methods.allocate.problems import (
    all_assignments,
    random_problem,
    with_groups,
    with_measure,
)

ALLOCATORS: dict[str, Allocator] = methods("allocate")
SHARES = (0.15, 0.2, 0.3, 0.5, 0.7, 1.0)
every = pytest.mark.parametrize("name", ALLOCATORS)


def test_all_are_there() -> None:
    assert {"bisection", "clustering", "greedy", "ilp", "search", "shares", "uniform"} <= set(
        ALLOCATORS
    )


@every
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_budgets_are_met_and_ties_hold(name, tied, pairs) -> None:
    for seed in range(5):
        problem = random_problem(seed, 6, pairs, tied, bops=0.4, memory=0.6)
        assignment = ALLOCATORS[name](problem)
        assert problem.fits(assignment)
        assert len(assignment) == 6
        if tied:
            bits = {problem.options[i][assignment[i]].input for i in (0, 1)}
            assert len(bits) == 1


def everything(seed: int, target: float | None = None, **budgets: float) -> Problem:
    """With ties, groups of layers, a measure, and a target where one is given."""
    problem = with_groups(random_problem(seed, 6, tied=True, **budgets), seed)
    return with_measure(problem, seed, target)


@every
def test_budgets_are_met_with_groups_and_a_measure(name) -> None:
    for seed in range(2):
        problem = everything(seed, bops=0.45, memory=0.6)
        assert problem.fits(ALLOCATORS[name](problem))


@every
def test_a_target_is_heeded_or_refused(name) -> None:
    for seed in range(4):
        free = everything(seed)
        assert free.measure is not None
        target = free.measure(free.ladder[len(free.ladder) // 2])
        problem = everything(seed, target, bops=1.0)
        if ALLOCATORS[name].takes_target:
            allocate_bits(problem, name)
            assert free.measure(ALLOCATORS[name](problem)) <= target
        else:
            with pytest.raises(InvalidOption, match=f"'{name}' takes no target; leave it out"):
                allocate_bits(problem, name)


@every
def test_other_metrics_count_where_they_are_said_to(name) -> None:
    problem = with_measure(random_problem(2, 6, bops=0.45), 2)
    other = Quantity(tuple(values[::-1].copy() for values in problem.harm.single))
    more = replace(problem, metrics={"other": other})
    check_metrics(["kl", "kl"], name)
    if ALLOCATORS[name].several_metrics:
        check_metrics(["kl", "mse"], name)
    else:
        assert ALLOCATORS[name](more) == ALLOCATORS[name](problem)
        with pytest.raises(InvalidOption, match=f"'{name}' looks at one metric; give one"):
            check_metrics(["kl", "mse"], name)


@every
def test_groups_are_asked_for_where_they_are_needed(name) -> None:
    check_groups("decoupled:content=head", name, ["stem", "head"])
    if ALLOCATORS[name].needs_groups:
        for scorer in ("local", "decoupled"):  # the second finds none among these names
            with pytest.raises(InvalidOption, match=f"'{scorer}' judges all of these layers alike"):
                check_groups(scorer, name, ["stem", "head"])
    else:
        check_groups("local", name, ["stem", "head"])


def assert_monotone(name: str, problems: list[Problem]) -> None:
    """Of problems with growing budgets; one that refuses leaves as much harm as there can be."""
    before = np.inf
    for problem in problems:
        try:
            harm = problem.harm.total(ALLOCATORS[name](problem))
        except InvalidOption:
            harm = np.inf
        assert harm <= before * (1 + 1e-12)
        before = harm
    assert before < np.inf


@every
def test_a_larger_budget_is_never_worse(name) -> None:
    for seed in range(4):
        assert_monotone(
            name,
            [random_problem(seed, 6, tied=True, bops=share, memory=0.8) for share in SHARES],
        )


@pytest.mark.parametrize("name", [n for n, a in ALLOCATORS.items() if a.monotone])
def test_nor_with_groups_a_measure_and_a_target_where_that_is_promised(name) -> None:
    takes_target = ALLOCATORS[name].takes_target
    for seed in range(4):
        free = everything(seed)
        assert free.measure is not None
        for target in (None, free.measure(free.ladder[len(free.ladder) // 2]))[: 1 + takes_target]:
            assert_monotone(
                name, [everything(seed, target, bops=s, memory=0.9) for s in (*SHARES, 1.2)]
            )


@pytest.mark.parametrize("name", [n for n, a in ALLOCATORS.items() if a.exact])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("pairs", [False, True])
def test_the_exact_ones_equal_brute_force(name, tied, pairs) -> None:
    for seed in range(6):
        problem = random_problem(seed, 3, pairs, tied, bops=0.35, memory=0.5)
        best = min(problem.harm.total(a) for a in all_assignments(problem) if problem.fits(a))
        assert problem.harm.total(ALLOCATORS[name](problem)) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("name", [n for n, a in ALLOCATORS.items() if a.exact])
def test_the_exact_ones_equal_brute_force_on_eight_layers(name) -> None:
    problem = random_problem(7, 8, bops=0.4, memory=0.5)
    few = (0, 5, 11)  # three of the choices: 6,561 assignments

    def picked(quantity: Quantity) -> Quantity:
        return Quantity(tuple(values[list(few)] for values in quantity.single))

    layers = {n: tuple(o[k] for k in few) for n, o in problem.choices.layers.items()}
    costs = {n: picked(cost) for n, cost in problem.costs.items()}
    small = replace(problem, choices=Choices(layers), harm=picked(problem.harm), costs=costs)
    best = min(small.harm.total(a) for a in all_assignments(small) if small.fits(a))
    assert small.harm.total(ALLOCATORS[name](small)) == pytest.approx(best, rel=1e-9)


@every
def test_a_broken_problem_is_said(name) -> None:
    problem = random_problem(0, bops=0.5)
    with pytest.raises(InvalidOption, match="the target is not a number"):
        ALLOCATORS[name](replace(problem, target=float("nan")))
    with pytest.raises(InvalidOption, match="no layer to choose bits for"):
        ALLOCATORS[name](replace(problem, choices=Choices({}), harm=Quantity(())))


@every
def test_what_cannot_be_met_is_said(name) -> None:
    problem = random_problem(0, bops=1e-6)
    with pytest.raises(InvalidOption, match=r"bops ≤ .* least possible is bops"):
        ALLOCATORS[name](problem)


@every
def test_facts_are_of_the_catalogue(name) -> None:
    facts = ALLOCATORS[name].facts
    assert facts.kind in {"MPW", "MPW+UPA", "MPW+MPA", "KV"}
    assert facts.export in {"finn", "qonnx", "none"}


@every
def test_a_front_has_no_beaten_point(name) -> None:
    problem = random_problem(3, memory=0.9)
    limits = np.linspace(0.05, 1, 8) * problem.costs["bops"].extreme(np.max)
    front = pareto(replace(problem, budgets={}), "bops", limits, name)
    harms = [found.harm for found in front]
    assert len(front) > 1
    assert harms == sorted(harms, reverse=True)
