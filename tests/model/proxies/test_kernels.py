"""The compiled projection against Python integers and all possible answers."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from brevitas_axe.model.proxies.kernels import cost_of, project_tiles

COSTS = st.sampled_from([(True, 15, 15), (True, 255, 255), (False, 2, 0), (False, 31, 1)])


@settings(deadline=None)
@given(st.lists(st.integers(-127, 127), max_size=40), st.integers(1, 511), st.integers(0, 511))
def test_the_cost_is_that_of_python_integers(row, norm_cost, imbalance_cost):
    expected = sum(abs(q) for q in row) * norm_cost + abs(sum(row)) * imbalance_cost
    assert cost_of(np.array(row, np.float32), norm_cost, imbalance_cost) == expected


@settings(max_examples=150, deadline=None)
@given(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4), COSTS, st.integers(1, 12))
@example([0.0, 1.671875, 1.671875, 1.671875], (True, 15, 15), 4)  # ends closer than rounding
def test_no_integers_that_fit_are_nearer(row, costs, units):
    one_sided, norm_cost, imbalance_cost = costs
    bound = units * (norm_cost + imbalance_cost)
    values = np.array([row], np.float32)
    integers, over = values.round(), np.empty((1, 1), bool)
    project_tiles(integers, values, 4, *costs, bound, over)

    def cost(q):
        return sum(abs(v) for v in q) * norm_cost + abs(sum(q)) * imbalance_cost

    def error(q):
        return sum((v - w) ** 2 for v, w in zip(row, q, strict=True))

    rounded = values.round()[0].astype(int).tolist()
    found = integers[0].astype(int).tolist()
    assert cost(found) <= bound
    assert bool(over[0, 0]) == (cost(rounded) > bound)
    if imbalance_cost and not one_sided:
        return  # the sum of magnitudes is bounded more tightly than the cost asks for
    candidates = product(*(range(min(q, 0), max(q, 0) + 1) for q in rounded))
    assert error(found) <= min(error(q) for q in candidates if cost(q) <= bound) + 1e-2


def test_tiles_are_independent_and_the_last_may_be_short():
    values = np.array([[3, 3, 3, 1, 1, 0, 3], [1, 0, 0, 3, 3, 3, -3]], np.float32)
    integers, over = values.copy(), np.empty((2, 3), bool)
    project_tiles(integers, values, 3, True, 1, 1, 2 * 4, over)
    assert over.tolist() == [[True, False, False], [False, True, False]]
    assert integers[0, 3:].tolist() == [1, 1, 0, 3]
    assert integers[1, [0, 1, 2, 6]].tolist() == [1, 0, 0, -3]
    assert integers[0, :3].sum() == integers[1, 3:6].sum() == 4
