"""The cases by which the published allocators are judged."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Problem, Quantity, make_problem
from brevitas_axe.methods.allocate.bisection import Bisection, bisection
from brevitas_axe.methods.allocate.clustering import cluster, clustering
from brevitas_axe.methods.allocate.greedy import path
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.allocate.shares import shares
from brevitas_axe.methods.sensitivity.augmented import interaction
from brevitas_axe.methods.sensitivity.hutchinson import block_traces
from brevitas_axe.methods.sensitivity.scores import from_importance
from brevitas_axe.plan import Choices, LayerPrecision
from tests.methods.allocate.problems import all_assignments, random_problem

FLOAT = torch.tensor([0.90909, 0.917431, 1.1235955], dtype=torch.float64)


def _product_loss(quantized: tuple[int, ...]) -> float:
    """f(w) = ½ (Πw / Πw0 − 1)², some weights rounded to 1."""
    w = FLOAT.clone()
    w[list(quantized)] = 1.0
    return float((w.prod() / FLOAT.prod() - 1).square() / 2)


def _product_problem(target: float) -> Problem:
    w = [x.clone().requires_grad_(True) for x in FLOAT]
    loss = (torch.stack(w).prod() / FLOAT.prod() - 1).square() / 2
    traces = block_traces(loss, w, 2, torch.Generator().manual_seed(0))
    alone = [0.5 * t * float(1 - x) ** 2 for t, x in zip(traces, FLOAT, strict=True)]
    sets = [(), (0,), (1,), (2,), *combinations(range(3), 2)]
    losses = {names: _product_loss(names) for names in sets}
    zero = np.zeros((2, 2))
    pairs = {}
    for pair in combinations(range(3), 2):
        pairs[pair] = zero.copy()
        pairs[pair][1, 1] = interaction(losses, pair)
    options = (LayerPrecision(weight=8), LayerPrecision(weight=1))
    return Problem(
        Choices({f"w{i}": options for i in range(3)}),
        Quantity(tuple(np.array([0.0, s]) for s in alone), pairs),
        {"bits": Quantity(tuple(np.array([8.0, 1.0]) for _ in range(3)))},
        {},
        measure=lambda a: _product_loss(tuple(i for i, c in enumerate(a) if c)),
        target=target,
    )


def test_interactions_reorder_layers_and_admit_more_of_them() -> None:
    problem = _product_problem(0.007)
    rung = (1, 1, 1)
    layerwise = Bisection(interactions=0.0)
    assert layerwise.order(problem, rung) == [1, 0, 2]
    assert sum(layerwise(problem)) == 1
    assert bisection.order(problem, rung) == [2, 0, 1]
    assert sum(bisection(problem)) == 3


def test_a_target_is_met_or_refused() -> None:
    problem = _product_problem(0.004)
    assert problem.measure is not None
    assert problem.measure(bisection(problem)) <= 0.004
    with pytest.raises(InvalidOption, match="allow more loss"):
        bisection(_product_problem(-1.0))
    with pytest.raises(InvalidOption, match="give it a model"):
        bisection(replace(problem, measure=None))


@pytest.mark.parametrize("seed", range(5))
def test_greedy_makes_the_model_cheaper_with_every_move(seed) -> None:
    problem = random_problem(seed, 5, tied=True)
    steps = list(path(problem))
    assert len(steps) > 10
    expenses = [problem.expense(a) for a in steps]
    assert all(after < before for before, after in pairwise(expenses))
    assert all(problem.is_tied(a) for a in steps)


def test_clusters_are_found_and_labelled_by_their_centres() -> None:
    scores = np.array([5.1, 0.1, 100.0, 0.12, 5.0, 98.0, 0.09])
    assert cluster(scores, 3).tolist() == [1, 0, 2, 0, 1, 2, 0]
    for order in list(permutations(range(7)))[::500]:
        assert np.array_equal(cluster(scores[list(order)], 3), cluster(scores, 3)[list(order)])


def test_clustering_gives_more_bits_to_higher_scores_whatever_the_order() -> None:
    scores = np.array([3.0, 0.2, 8.0, 1.0, 0.05])
    options = tuple(LayerPrecision(weight=bits) for bits in (8, 4, 2))

    def problem(order: list[int], limit: float) -> Problem:
        harm = tuple(scores[i] * np.array([0.0, 0.1, 1.0]) for i in order)
        bits = tuple(np.array([8.0, 4.0, 2.0]) for _ in order)
        choices = Choices({f"l{i}": options for i in order})
        return Problem(choices, Quantity(harm), {"bits": Quantity(bits)}, {"bits": limit})

    for limit in (10, 16, 20, 26, 32, 40):
        natural = problem([0, 1, 2, 3, 4], limit)
        plan = natural.plan(clustering(natural))
        by_score = [plan[f"l{i}"].weight or 0 for i in np.argsort(scores)]
        assert by_score == sorted(by_score)
        mixed = problem([3, 1, 4, 0, 2], limit)
        assert dict(mixed.plan(clustering(mixed)).layers) == dict(plan.layers)


def test_importance_times_bits_is_made_large_under_size_and_bit_operations() -> None:
    """The program of LRP-QViT: max Σ Ω_l·b_l under two budgets."""
    random = np.random.default_rng(2)
    options = tuple(LayerPrecision(w, a) for w in (4, 6, 8) for a in (4, 8))
    choices = Choices({f"l{i}": options for i in range(4)})
    omega = random.uniform(0, 1, 4)
    scores = from_importance(choices, dict(zip(choices.layers, omega, strict=True)))
    bits = np.array([(c.weight or 0, c.input or 0) for c in options], dtype=float)
    costs = {
        "size": Quantity(tuple(s * bits[:, 0] for s in random.uniform(1, 9, 4))),
        "bitops": Quantity(tuple(s * bits.prod(1) for s in random.uniform(1, 9, 4))),
    }
    budgets = {name: 0.6 * cost.extreme(np.max) for name, cost in costs.items()}
    problem = make_problem(scores, costs, budgets)

    def value(assignment) -> float:
        return sum(o * bits[c].sum() for o, c in zip(omega, assignment, strict=True))

    best = max(value(a) for a in all_assignments(problem) if problem.fits(a))
    assert value(ilp(problem)) == pytest.approx(best)
    assert best < 16 * omega.sum()


@pytest.mark.parametrize("seed", range(6))
def test_decoupled_groups_are_no_worse_than_with_a_single_metric(seed) -> None:
    problem = random_problem(seed, 6, bops=0.3)
    random = np.random.default_rng(seed)
    other = Quantity(tuple(h * random.uniform(0.1, 10) for h in problem.harm.single))
    names = problem.names
    parts = {"sqnr": names[:3], "ssim": names[3:]}
    harm = Quantity((*problem.harm.single[:3], *other.single[3:]))
    metrics = {"sqnr": problem.harm, "ssim": other}
    decoupled = replace(problem, harm=harm, parts=parts, metrics=metrics)
    found = shares(decoupled)
    single = ilp(problem)  # the first metric for all layers
    assert decoupled.fits(found)
    for group in (range(3), range(3, 6)):
        ours = sum(harm.single[i][found[i]] for i in group)
        assert ours <= sum(harm.single[i][single[i]] for i in group) * (1 + 1e-9)
