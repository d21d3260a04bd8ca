"""Integer programs against brute force, on tables without any structure."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.methods.allocate import Problem, Quantity
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.allocate.program import PairTable
from brevitas_axe.plan import Choices, LayerPrecision

WIDTHS = [LayerPrecision(w, a) for w in (2, 4, 8) for a in (4, 8)]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**9))
def test_the_optimum_with_pairs_ties_and_two_budgets(seed) -> None:
    random = np.random.default_rng(seed)
    count = random.integers(1, 4)
    options = [tuple(WIDTHS[: 2 * random.integers(1, 4)]) for _ in range(count)]
    names = [f"l{i}" for i in range(count)]
    tie = (tuple(names[:2]),) if count > 1 and random.random() < 0.5 else ()

    def quantity() -> Quantity:
        scale = 10 ** random.uniform(-3, 6)
        return Quantity(
            tuple(scale * random.uniform(-0.2, 1, len(o)) for o in options),
            {
                (i, j): scale * random.uniform(-1, 1, (len(options[i]), len(options[j])))
                for i in range(count)
                for j in range(i + 1, count)
                if random.random() < 0.4
            },
        )

    costs = {"a": quantity(), "b": quantity()}
    every = list(product(*(range(len(o)) for o in options)))
    choices = Choices(dict(zip(names, options, strict=True)), tie)
    free = Problem(choices, quantity(), costs, {})
    tied = [a for a in every if free.is_tied(a)]
    known = tied[random.integers(len(tied))]
    budgets = {name: cost.total(known) for name, cost in costs.items()}
    problem = Problem(choices, free.harm, costs, budgets)
    best = min(problem.harm.total(a) for a in tied if problem.fits(a))
    assert problem.harm.total(ilp(problem)) == pytest.approx(best, rel=1e-9, abs=1e-12)


def test_pairs_that_add_up_need_no_products() -> None:
    rows, columns = np.array([1.0, 4.0, 2.0]), np.array([0.0, 3.0])
    table = PairTable.of({"": rows[:, None] + columns})
    assert table.values[""].shape == (1, 1)
    first, second = table.alone[""]
    assert np.array_equal(first[:, None] + second, rows[:, None] + columns)


def test_changes_are_differences_of_totals() -> None:
    random = np.random.default_rng(0)
    quantity = Quantity(
        tuple(random.random((3, 4))), {(0, 1): random.random((4, 4)), (1, 2): random.random((4, 4))}
    )
    before, after = (0, 1, 2), (3, 0, 2)
    change = quantity.change(before, {0: 3, 1: 0})
    assert change == pytest.approx(quantity.total(after) - quantity.total(before))


def test_broken_numbers_and_unknown_budgets_are_refused() -> None:
    with pytest.raises(NonFiniteValues):
        Quantity((np.array([np.nan]),))
    harm = Quantity((np.zeros(1),))
    with pytest.raises(InvalidOption, match="no cost for the budget 'lut'"):
        Problem(Choices({"a": (LayerPrecision(2),)}), harm, {"bops": harm}, {"lut": 1.0})
