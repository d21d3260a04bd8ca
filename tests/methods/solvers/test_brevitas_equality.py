"""The published algorithms give the integers of the authors' code."""

from __future__ import annotations

import pytest
import torch

from benchmarks.brevitas_reference import solve
from brevitas_axe.registry import method, methods
from tests.methods.solvers.layers import assert_feasible


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(
    ("signed", "bit_width", "tile_size"),
    [(False, 16, None), (False, 13, None), (True, 15, 16), (True, 13, None), (False, 12, 8)],
)
@pytest.mark.parametrize("name", ["gpfq", "gptq"])
def test_same_integers_with_a_budget(
    name: str, signed: bool, bit_width: int, tile_size: int | None, act_order: bool
) -> None:
    # The columns are a multiple of the tile: Brevitas pads a short last tile with zeros.
    reference = solve(
        name, 24, 48, signed=signed, bit_width=bit_width, tile_size=tile_size, act_order=act_order
    )
    solution = method("solvers", name)(reference.problem, act_order=act_order)
    assert_feasible(reference.problem, solution)
    assert torch.equal(solution.integers, reference.integers)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("name", sorted(methods("solvers")))
def test_same_integers_without_a_budget(name: str, signed: bool, act_order: bool) -> None:
    reference = solve(name, 24, 48, signed=signed, bit_width=None, act_order=act_order)
    solution = method("solvers", name)(reference.problem, act_order=act_order)
    assert torch.equal(solution.integers, reference.integers)
