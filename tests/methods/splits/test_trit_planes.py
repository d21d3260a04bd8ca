"""Two ternary planes: the fit, what it recovers, and the solve that begins from it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.grid_start import from_start
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution
from brevitas_axe.methods.solvers.qronos import qronos
from brevitas_axe.methods.splits.branches import branch_problems, solve_branches, together
from brevitas_axe.methods.splits.layers import float_problem
from brevitas_axe.methods.splits.trit_planes import (
    ROUNDS,
    alternated,
    error,
    fitted,
    least_squares,
    nearest,
    trit_planes,
)
from brevitas_axe.model.branches import branched_layers
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.registry import method
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import batches, tiny

TRITS = torch.cartesian_prod(torch.tensor([-1.0, 0, 1]), torch.tensor([-1.0, 0, 1]))


def relative_error(weight: torch.Tensor, starts: int) -> float:
    return float((error(weight, *fitted(weight, starts)).sum() / weight.square().sum()).sqrt())


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**20), st.floats(0, 3), st.floats(0, 3))
def test_every_pair_is_the_nearest_of_nine(seed: int, one: float, two: float) -> None:
    weight = torch.randn(1, 16, generator=torch.Generator().manual_seed(seed)).double()
    scales = torch.tensor([[max(one, two), min(one, two)]]).double()
    planes = nearest(weight.abs(), scales) * weight.sign()
    assert set(planes.flatten().tolist()) <= {-1.0, 0.0, 1.0}
    levels = TRITS.double() @ scales[0]
    least = (weight.unsqueeze(-1) - levels).abs().amin(-1)
    found = (weight - (scales[0] @ planes[:, 0])).abs()
    torch.testing.assert_close(found, least, atol=1e-12, rtol=0)


def test_the_error_falls_from_round_to_round() -> None:
    torch.manual_seed(0)
    magnitude = torch.randn(64, 128).abs()
    planes = nearest(magnitude, torch.tensor([[1.5, 0.7]]).expand(64, 2))
    before = torch.full((64,), torch.inf)
    for _ in range(ROUNDS):
        scales = least_squares(magnitude, planes)
        assert (error(magnitude, scales, planes) <= before * (1 + 1e-5)).all()
        planes = nearest(magnitude, scales)
        after = error(magnitude, scales, planes)
        assert (after <= before * (1 + 1e-5)).all()
        before = after
    start = nearest(magnitude, torch.tensor([[1.5, 0.7]]).expand(64, 2))
    torch.testing.assert_close(alternated(magnitude, start)[2], before)


def test_gaussian_weights_lose_less_than_with_three_bits() -> None:
    torch.manual_seed(0)
    weight = torch.randn(256, 128)
    assert relative_error(weight, 20) < relative_error(weight, 0) < 0.17

    def with_three_bits(factor: float) -> torch.Tensor:
        scale = factor * (weight.amax(1) - weight.amin(1)).unsqueeze(1) / 7
        low = weight.amin(1, keepdim=True) * factor
        return (((weight - low) / scale).round().clamp(0, 7) * scale + low - weight).square().sum(1)

    uniform = torch.stack([with_three_bits(f) for f in torch.linspace(0.5, 1, 21).tolist()])
    assert relative_error(weight, 20) < 0.95 * float(
        (uniform.amin(0).sum() / weight.square().sum()).sqrt()
    )


def test_planted_planes_are_recovered_from_several_starts_only() -> None:
    torch.manual_seed(1)
    scales = (torch.randn(2000, 2).abs() + 0.1).sort(1, descending=True).values
    planes = torch.randint(-1, 2, (2, 2000, 128)).float()
    weight = scales[:, :1] * planes[0] + scales[:, 1:] * planes[1]

    def recovered(starts: int) -> float:
        left = error(weight, *fitted(weight, starts))
        return float((left < 1e-9 * weight.square().sum(1)).float().mean())

    assert recovered(20) >= 0.99
    assert recovered(0) < 0.5 * recovered(20)


def test_weights_that_need_one_plane_or_none() -> None:
    weight = torch.tensor([[1.0, -1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    scales, planes = fitted(weight)
    assert (scales > 0).all()
    torch.testing.assert_close(error(weight, scales, planes), torch.zeros(2), atol=1e-10, rtol=0)


def layer(limit: int | None = None, columns: int = 64):
    torch.manual_seed(0)
    linear = nn.Linear(columns, 16)
    x = torch.randn(512, columns) @ torch.randn(columns, columns) / columns**0.5
    widths = LayerPrecision(weight=4, input=8, accumulator=limit, tile=16)
    return float_problem("fc", linear, widths, x), widths, x


def solve(problems: Sequence[LayerProblem]) -> list[LayerSolution]:
    return [qronos(p, act_order=True, quality="best") for p in problems]


def largest_sum(integers: torch.Tensor) -> int:
    """Of a tile, over all inputs of 8 bits."""
    tiles = integers.long().unflatten(-1, (-1, 16))
    up, down = tiles.clamp_min(0).sum(-1), -tiles.clamp_max(0).sum(-1)
    return int(torch.maximum(127 * up + 128 * down, 128 * up + 127 * down).max())


@pytest.mark.parametrize("limit", [None, 11])
def test_the_solve_begins_from_the_planes_and_keeps_the_budget(limit: int | None) -> None:
    problem, widths, x = layer(limit)
    branches = trit_planes(problem, widths, x)
    assert [b.name for b in branches] == ["coarse", "fine"]
    assert all(b.precision.weight == 2 and b.precision.tile == 16 for b in branches)
    torch.testing.assert_close(branches[0].weight + branches[1].weight, problem.weight[0])
    parts, moments = branch_problems(problem, branches)
    nearest_planes = [
        LayerSolution((p.weight / p.scale.repeat_interleave(16, -1)).round().clamp(-1, 1).int(),
                      p.scale) for p in parts]  # fmt: skip
    begun = partial(from_start, quality="best")
    solved, whole, kept = solve_branches(parts, moments, solve, begun)
    planes = together(nearest_planes, parts)
    if limit is None:
        assert (kept.loss(whole) <= planes.loss(whole)).all()
        assert (from_start(whole, "best").loss(whole) <= planes.loss(whole)).all()
        assert from_start(whole, "fast").loss(whole).allclose(planes.loss(whole))
        constant = float((problem.weight[0] @ problem.hessian[0] * problem.weight[0]).sum())
        energy = [float(s.loss(whole).sum()) + constant for s in (kept, planes)]
        assert energy[0] < 0.9 * energy[1]
    else:
        assert largest_sum(planes.integers) >= 2**10  # the budget binds
    for solution in solved:
        assert solution.integers.abs().max() <= 1
        if limit is not None:
            assert largest_sum(solution.integers) < 2 ** (limit - 1)


def test_planes_lose_less_than_uniform_three_bits() -> None:
    problem, widths, x = layer()
    parts, moments = branch_problems(problem, trit_planes(problem, widths, x))
    _, whole, kept = solve_branches(parts, moments, solve, partial(from_start, quality="best"))
    three = LayerPrecision(weight=3, input=8, tile=16)
    uniform = float_problem("fc", nn.Linear(64, 16), three, x)
    uniform = LayerProblem(
        weight=problem.weight,
        hessian=problem.hessian,
        scale=(problem.weight.unflatten(-1, (-1, 16)).abs().amax(-1) / 3),
        weight_low=-3,
        weight_high=3,
        input_low=uniform.input_low,
        input_high=uniform.input_high,
        tile_size=16,
    )
    assert kept.loss(whole).sum() < solve([uniform])[0].loss(uniform).sum()


def test_blocks_become_planes_that_are_proven() -> None:
    model, data = tiny("llama").eval(), batches("llama")
    recipe = Recipe(split="trit_planes:starts=4", weights="tile", quality="fast", solver="gptq")
    widths = LayerPrecision(4, 8, accumulator=12, tile=16)
    result = quantize_blocks(
        model, data, widths, recipe, exclude=("model.layers.1",), run=Run(progress=False)
    )
    result.certificate.require()
    split = branched_layers(result.model)
    assert len(split) == 7
    assert {p.weight for p in result.plan.layers.values()} == {2}
    said = " ".join(result.certificate.assumptions)
    assert "'model.layers.0.self_attn.q_proj.coarse'" in said
    assert "scaled before they are added" in said
    assert result.model(data[0]).logits.isfinite().all()


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidOption, match="starts of TritPlanes must be at least 0"):
        method("splits", "trit_planes:starts=-1")
