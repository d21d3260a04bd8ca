"""The local search keeps the budget, reports its loss, and ends where no single move helps."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch

from brevitas_axe.methods.solvers import LayerSolution
from brevitas_axe.methods.solvers.local_search import improve_integers
from brevitas_axe.registry import method
from tests.methods.solvers.layers import assert_feasible, largest_sum, random_problem


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "tile"), [(None, None), (11, None), (10, 8), (30, None)])
@pytest.mark.parametrize("shared", [False, True])
def test_local_optimum(signed: bool, bits: int | None, tile: int | None, shared: bool) -> None:
    problem = random_problem(
        4,
        20,
        signed=signed,
        accumulator_bit_width=bits,
        tile_size=tile,
        dtype=torch.float64,
        shared_scale=shared,
    )
    start = method("solvers", "gptq")(problem)
    wanted = problem.weight @ problem.cross.mT
    integers, factor, loss = improve_integers(
        problem, wanted, start.integers, problem.tile_scale, 1000
    )
    solution = LayerSolution(integers, problem.scale * factor)
    assert_feasible(problem, solution)
    assert shared == bool((factor == 1).all())
    torch.testing.assert_close(loss, solution.loss(problem))
    assert bool((loss <= start.loss(problem)).all())
    for row, column, step in itertools.product(range(4), range(20), (-1, 1)):
        moved = integers.clone()
        moved[0, row, column] += step
        if abs(moved[0, row, column]) > 7:
            continue
        if bits is not None and largest_sum(problem, moved) >= 2 ** (bits - 1):
            continue
        other = replace(solution, integers=moved).loss(problem)[0, row]
        assert other >= loss[0, row] - 2e-5 * abs(loss[0, row])


def test_no_moves_is_no_change() -> None:
    problem = random_problem(accumulator_bit_width=12)
    start = method("solvers", "gpfq")(problem)
    wanted = problem.weight.double() @ problem.cross.double().mT
    integers, factor, _ = improve_integers(problem, wanted, start.integers, problem.tile_scale, 0)
    assert torch.equal(integers, start.integers)
    assert bool((factor == 1).all())
