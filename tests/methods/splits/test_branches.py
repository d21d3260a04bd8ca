"""The branches of a layer as one problem, and back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers import LayerProblem, LayerSolution
from brevitas_axe.methods.solvers.problem import UNLIMITED, with_bias_shift
from brevitas_axe.methods.splits import Branch
from brevitas_axe.methods.splits.branches import (
    apart,
    branch_problems,
    joint,
    solve_branches,
    together,
)
from brevitas_axe.methods.splits.layers import branched
from brevitas_axe.model.moments import Statistics
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method, methods
from tests.methods.solvers.layers import assert_feasible, random_problem

NARROW = LayerPrecision(weight=3, input=6, accumulator=12, tile=4)
WIDE = LayerPrecision(weight=5, input=8)


def branches(problem: LayerProblem, *precisions: LayerPrecision) -> tuple[Branch, ...]:
    """Interleaved columns: a branch's columns are no range of the layer's."""
    return tuple(
        Branch(f"b{i}", columns, problem.weight[0][:, columns], precision)
        for i, precision in enumerate(precisions)
        for columns in [torch.arange(i, problem.columns, len(precisions))]
    )


def cut(problem: LayerProblem, *precisions) -> tuple[tuple[LayerProblem, ...], Statistics]:
    return branch_problems(problem, branches(problem, *precisions))


def test_the_joint_problem_is_that_of_the_layer() -> None:
    problem = random_problem(3, 20, bias=True)
    parts, moments = cut(problem, NARROW, WIDE)
    whole = joint(parts, moments)
    assert whole.tile_starts == (0, 4, 8, 10)
    assert torch.as_tensor(whole.accumulator_bit_width).tolist() == [12, 12, 12, UNLIMITED]
    assert torch.as_tensor(whole.weight_high).tolist() == [3] * 10 + [15] * 10
    assert whole.input_range[1][0].tolist() == [63] * 10 + [255] * 10
    assert whole.scale.shape == (1, 3, 4)
    # The loss does not depend on the order of the columns.
    integers = torch.randint(-3, 4, (1, 3, 20), dtype=torch.int32)
    one = LayerSolution(integers, torch.full((1, 3, 4), 0.3))
    order = torch.cat([torch.arange(0, 20, 2), torch.arange(1, 20, 2)])
    scattered = torch.empty_like(integers)
    scattered[..., order] = integers
    other = LayerSolution(scattered, torch.full((1, 3), 0.3))
    torch.testing.assert_close(one.loss(whole), other.loss(problem))
    assert whole.quant_mean is not None
    assert parts[1].quant_mean is None


def test_apart_undoes_together() -> None:
    parts, moments = cut(random_problem(3, 20, bias=True), NARROW, WIDE)
    tiled = replace(parts[0], scale=parts[0].scale.unsqueeze(-1) * torch.tensor([1.0, 2, 4]))
    parts = (tiled, parts[1])
    solutions = [method("solvers", "gptq")(part, quality="best") for part in parts]
    whole = joint(parts, moments)
    combined = with_bias_shift(whole, together(solutions, parts))
    back = apart(combined, parts)
    for one, other in zip(solutions, back, strict=True):
        assert torch.equal(one.integers, other.integers)
        assert torch.equal(one.scale, other.scale)
    assert back[0].bias_shift is not None
    assert back[1].bias_shift is None


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_joint_is_feasible_and_never_worse_than_apart(data: st.DataObject) -> None:
    draw = data.draw
    width = st.builds(
        LayerPrecision,
        weight=st.integers(2, 6),
        input=st.integers(2, 8),
        accumulator=st.one_of(st.none(), st.integers(6, 16)),
        tile=st.one_of(st.none(), st.integers(1, 10)),
    )
    problem = random_problem(
        rows=draw(st.integers(1, 6)),
        columns=draw(st.integers(4, 30)),
        signed=draw(st.booleans()),
        bias=draw(st.booleans()),
        dead=draw(st.integers(0, 2)),
        seed=draw(st.integers(0, 99)),
    )
    parts, moments = cut(problem, *draw(st.lists(width, min_size=2, max_size=4)))
    tied = draw(st.sampled_from([{}, {"shared_scale": True}, {"power_of_two": True}]))
    if tied.get("shared_scale"):
        parts = [replace(p, scale=p.scale.amax().expand_as(p.scale).clone()) for p in parts]
    parts = [replace(part, **tied) for part in parts]
    solve = method("solvers", draw(st.sampled_from(sorted(methods("solvers")))))
    quality = draw(st.sampled_from(["fast", "best"]))

    def each(problems):
        return [solve(p, quality=quality) for p in problems]

    alone = together(each(parts), parts)
    solutions, whole, kept = solve_branches(parts, moments, each)
    for part, solution in zip(parts, solutions, strict=True):
        assert_feasible(part, solution)
        if tied.get("shared_scale"):
            assert solution.scale.unique().numel() == 1
    before, after = alone.loss(whole), kept.loss(whole)
    if tied.get("shared_scale"):
        before, after = before.sum(), after.sum()
    assert bool((after <= before + 1e-9 * before.abs()).all())


def test_joint_branches_correct_each_other() -> None:
    problem = random_problem(24, 64, signed=True)
    parts, moments = cut(problem, replace(NARROW, tile=None, accumulator=None), WIDE)

    def each(problems):
        return [method("solvers", "qronos")(p, act_order=True, quality="best") for p in problems]

    alone = together(each(parts), parts)
    _, whole, kept = solve_branches(parts, moments, each)
    least = -(whole.weight.double() @ whole.hessian.double() * whole.weight.double()).sum(-1)
    gained = (kept.loss(whole) - least).sum() / (alone.loss(whole) - least).sum()
    assert gained < 0.9


def test_repeated_columns_are_solved() -> None:
    problem = random_problem(6, 12, signed=True)
    columns = torch.arange(12)
    weight = problem.weight[0]
    planes = [
        Branch("one", columns, weight * 0.7, replace(WIDE, weight=2, accumulator=11)),
        Branch("two", columns, weight * 0.3, replace(WIDE, weight=2)),
    ]
    parts, moments = branch_problems(problem, planes)

    def each(problems):
        return [method("solvers", "qronos")(p, quality="best") for p in problems]

    solutions, _, _ = solve_branches(parts, moments, each)
    for part, solution in zip(parts, solutions, strict=True):
        assert_feasible(part, solution)


def test_two_branches_of_one_name_are_refused() -> None:
    layer = torch.nn.Linear(4, 2)
    halves = [
        Branch("half", torch.tensor(columns), layer.weight[:, columns], LayerPrecision())
        for columns in ([0, 1], [2, 3])
    ]
    with pytest.raises(InvalidOption, match="the name 'half'"):
        branched(layer, halves)
