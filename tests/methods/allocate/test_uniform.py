"""One precision for all layers."""

from __future__ import annotations

import pytest

from brevitas_axe.methods.allocate.uniform import uniform
from tests.methods.allocate.problems import random_problem


@pytest.mark.parametrize("seed", range(4))
def test_all_layers_get_the_same_and_nothing_equal_that_fits_is_better(seed) -> None:
    problem = random_problem(seed, 5, bops=0.5, memory=0.6)
    found = uniform(problem)
    assert len(set(problem.plan(found).layers.values())) == 1
    fitting = [problem.harm.total(a) for a in problem.uniform if problem.fits(a)]
    assert len(fitting) > 1
    assert problem.harm.total(found) == min(fitting)
