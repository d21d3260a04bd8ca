"""The best bargain first."""

from __future__ import annotations

from itertools import pairwise

import pytest

from brevitas_axe.methods.allocate.greedy import path
from tests.methods.allocate.problems import random_problem


@pytest.mark.parametrize("seed", range(5))
def test_greedy_makes_the_model_cheaper_with_every_move(seed) -> None:
    problem = random_problem(seed, 5, tied=True)
    steps = list(path(problem))
    assert len(steps) > 10
    expenses = [problem.expense(a) for a in steps]
    assert all(after < before for before, after in pairwise(expenses))
    assert all(problem.is_tied(a) for a in steps)
