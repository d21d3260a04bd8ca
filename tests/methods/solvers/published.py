"""The published algorithms give the integers of the authors' code."""

from __future__ import annotations

import torch

from benchmarks.brevitas_reference import solve
from brevitas_axe.registry import method
from tests.methods.solvers.layers import assert_feasible

# Inputs are signed, accumulator bits, tile size. The columns are a multiple of the tile: Brevitas
# pads a short last tile with zeros.
UNLIMITED = [(False, None, None), (True, None, None)]
BUDGETS = [(False, 16, None), (False, 13, None), (True, 15, 16), (True, 13, None), (False, 12, 8)]


def assert_same_integers(
    name: str, signed: bool, bits: int | None, tile: int | None, act_order: bool
) -> None:
    reference = solve(
        name, 24, 48, signed=signed, bit_width=bits, tile_size=tile, act_order=act_order
    )
    solution = method("solvers", name)(reference.problem, act_order=act_order)
    assert_feasible(reference.problem, solution)
    assert torch.equal(solution.integers, reference.integers)
