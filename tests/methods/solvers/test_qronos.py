"""Qronos as published, and inputs that hardly vary."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.solvers.qronos import qronos
from tests.methods.solvers.layers import assert_feasible, random_problem
from tests.methods.solvers.published import UNLIMITED, assert_same_integers


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("signed", "bits", "tile"), UNLIMITED)
def test_the_integers_are_those_of_the_authors_code(signed, bits, tile, act_order) -> None:
    assert_same_integers("qronos", signed, bits, tile, act_order)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mean", [100.0, 10000.0])
def test_inputs_that_hardly_vary_leave_it_to_the_bias(mean: float, dtype: torch.dtype) -> None:
    problem = random_problem(4, 64, mean=mean, bias=True, accumulator_bit_width=14, dtype=dtype)
    solution = qronos(problem, quality="best")
    assert_feasible(problem, solution)
    assert bool(solution.bias_shift.isfinite().all())
