"""GPFQ as published, and its best quality under more and more budget."""

from __future__ import annotations

from dataclasses import replace

import pytest

from brevitas_axe.methods.solvers.gpfq import gpfq
from tests.methods.solvers.layers import random_problem
from tests.methods.solvers.published import BUDGETS, UNLIMITED, assert_same_integers


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("signed", "bits", "tile"), [*BUDGETS, *UNLIMITED])
def test_the_integers_are_those_of_the_authors_code(signed, bits, tile, act_order) -> None:
    assert_same_integers("gpfq", signed, bits, tile, act_order)


def test_more_budget_never_hurts_best() -> None:
    problem = random_problem(8, 64, seed=5)
    losses = [
        gpfq(replace(problem, accumulator_bit_width=bits), quality="best").loss(problem).sum()
        for bits in (9, 11, 13, 15, 17)
    ]
    assert losses == sorted(losses, reverse=True)
