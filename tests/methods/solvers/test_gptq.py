"""OPTQ (GPTQ) as published."""

from __future__ import annotations

import pytest

from tests.methods.solvers.published import BUDGETS, UNLIMITED, assert_same_integers


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("signed", "bits", "tile"), [*BUDGETS, *UNLIMITED])
def test_the_integers_are_those_of_the_authors_code(signed, bits, tile, act_order) -> None:
    assert_same_integers("gptq", signed, bits, tile, act_order)
