"""Budgets divided between groups of layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from brevitas_axe.methods.allocate import Quantity
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.allocate.shares import shares
from tests.methods.allocate.problems import random_problem


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
