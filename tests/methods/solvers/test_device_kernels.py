"""The kernels for other devices give the integers of the compiled ones."""

from __future__ import annotations

from dataclasses import replace as changed
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.methods.solvers import (
    LayerProblem,
    device_kernels,
    kernels,
    local_search,
    sequential,
    thresholds,
)
from brevitas_axe.methods.solvers.problem import UNLIMITED, LayerSolution
from brevitas_axe.registry import method
from tests.methods.solvers.layers import random_problem

OTHERS = [device_kernels]
if find_spec("triton") is not None:
    OTHERS.append(import_module("brevitas_axe.methods.solvers.on_triton.recursion"))
others = pytest.mark.parametrize("used", OTHERS, ids=lambda used: used.__name__.rpartition(".")[2])


def both_ways(
    used: ModuleType, name: str, problem: LayerProblem, **options: Any
) -> tuple[LayerSolution, ...]:
    """The solution by the kernels for CPUs, and by others, in blocks of a few columns."""
    compiled = method("solvers", name)(problem, **options)
    with pytest.MonkeyPatch.context() as patch:
        for module in (sequential, thresholds):
            patch.setattr(module, "kernels_for", lambda device: used)
        patch.setattr(sequential, "BLOCK", 8)
        patch.setattr(sequential, "SUPER_BLOCK", 16)
        return compiled, method("solvers", name)(problem, **options)


@others
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_fast_solutions_are_the_same(used: ModuleType, data: st.DataObject) -> None:
    draw = data.draw
    groups, columns = draw(st.integers(1, 2)), draw(st.integers(1, 36))
    problem = random_problem(
        rows=draw(st.integers(1, 5)),
        columns=columns,
        groups=groups,
        signed=draw(st.booleans()),
        dead=draw(st.integers(0, min(columns, 3))),
        seed=draw(st.integers(0, 99)),
        dtype=torch.float64,
        accumulator_bit_width=draw(st.one_of(st.none(), st.integers(4, 20))),
        tile_size=draw(st.one_of(st.none(), st.integers(1, 50))),
    )
    if columns > 1 and draw(st.booleans()):
        high = torch.randint(0, 8, (columns,))
        problem = changed(
            problem,
            tile_size=None,
            tile_starts=(0, columns // 2),
            accumulator_bit_width=torch.tensor([draw(st.sampled_from([UNLIMITED, 8, 14])), 10]),
            weight_low=-high.flip(0),
            weight_high=high,
        )
    name, order = draw(st.sampled_from(("gpfq", "gptq", "qronos"))), draw(st.booleans())
    one, two = both_ways(used, name, problem, act_order=order)
    assert torch.equal(one.integers, two.integers)


@others
@pytest.mark.parametrize("name", ["gptq", "qronos"])
def test_weights_of_one_bit_are_the_same(used: ModuleType, name: str) -> None:
    binary = torch.tensor([True, False, True])
    ends = torch.tensor([1, 3, 1]).repeat_interleave(8)
    problem = random_problem(
        tile_size=8, accumulator_bit_width=13, dead=1, dtype=torch.float64,
        weight_low=-ends, weight_high=ends, binary=binary,
    )  # fmt: skip
    one, other = both_ways(used, name, problem)
    assert torch.equal(one.integers, other.integers)
    assert (one.integers[..., problem.binary_columns] != 0).all()


@others
def test_the_search_finds_the_same_rows(used: ModuleType) -> None:
    problem = random_problem(
        rows=6, columns=20, dtype=torch.float64, accumulator_bit_width=11, tile_size=8
    )
    one, two = both_ways(used, "qronos", problem, quality="best")
    assert torch.equal(one.integers, two.integers)
    torch.testing.assert_close(one.scale, two.scale)


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
@given(data=st.data())
@settings(max_examples=12, deadline=None)
def test_the_local_search_makes_the_same_moves(data: st.DataObject) -> None:
    search = import_module("brevitas_axe.methods.solvers.on_triton.descent")
    draw = data.draw
    problem = random_problem(
        rows=draw(st.integers(1, 3)),
        columns=draw(st.integers(2, 14)),
        groups=draw(st.integers(1, 2)),
        signed=draw(st.booleans()),
        seed=draw(st.integers(0, 99)),
        dtype=torch.float64,
        accumulator_bit_width=draw(st.one_of(st.none(), st.integers(8, 14))),
        tile_size=draw(st.one_of(st.none(), st.integers(1, 8))),
        shared_scale=draw(st.booleans()),
    )
    start = method("solvers", "gptq")(problem).integers
    wanted = problem.weight @ problem.cross.mT
    arguments = problem, wanted, start, problem.tile_scale, draw(st.sampled_from([0, 3, 40]))
    expected = local_search.improve_integers(*arguments)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(local_search, "search_for", lambda device: search.descend)
        patch.setattr(search, "COLUMNS", 4)
        found = local_search.improve_integers(*arguments)
    assert torch.equal(found[0], expected[0])
    for one, two in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, two)


@others
@given(
    columns=st.integers(1, 30),
    tile=st.integers(1, 40),
    radius=st.floats(0.01, 20),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_thresholds_are_the_same(
    used: ModuleType, columns: int, tile: int, radius: float, seed: int
) -> None:
    weight = torch.randn(4, columns, generator=torch.Generator().manual_seed(seed)).double()
    tile = min(tile, columns)
    balls = torch.full((4, -(-columns // tile)), radius, dtype=torch.float64)
    one, two = torch.empty_like(balls), torch.empty_like(balls)
    edges = torch.tensor([*range(0, columns, tile), columns])
    kernels.l1_thresholds(weight.numpy(), edges.numpy(), balls.numpy(), one.numpy())
    used.l1_thresholds(weight, edges, balls, two)
    torch.testing.assert_close(one, two)
