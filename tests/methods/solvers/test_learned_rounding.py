"""Learned rounding against AdaRound's loop, written down here, and what it keeps."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.learned_rounding import LearnedRounding, learned_rounding
from brevitas_axe.methods.solvers.problem import LayerSolution, expanded
from brevitas_axe.methods.solvers.rounding import beside, committed, learned
from brevitas_axe.methods.solvers.within_budget import better, rounded, within
from brevitas_axe.registry import method
from tests.methods.solvers.layers import assert_feasible, largest_sum, random_problem


def adaround(problem, steps: int, rate: float, strength: float, warmup: float):
    """(integers, V) of AdaRound's algorithm with BRECQ's constants, without a budget."""
    weight, step = problem.weight, problem.scale.unsqueeze(-1)
    floor = (weight / step).floor()
    rest = weight / step - floor
    v = (-torch.log(1.2 / (rest + 0.1) - 1)).requires_grad_()
    optimizer = torch.optim.Adam([v], rate)
    wanted = weight @ problem.cross.mT
    for number in range(steps):
        h = (torch.sigmoid(v) * 1.2 - 0.1).clamp(0, 1)
        x = (floor + h).clamp(problem.weight_low, problem.weight_high) * step
        loss = (x * (x @ problem.hessian - 2 * wanted)).sum()
        if number >= warmup * steps:
            share = (number - warmup * steps) / (steps - warmup * steps)
            b = 2 + 18 * max(0.0, 1 - share)
            loss = loss + strength * (1 - (2 * h - 1).abs().pow(b)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    v = v.detach()
    return (floor + (v >= 0)).clamp(problem.weight_low, problem.weight_high), v


@pytest.mark.parametrize("seed", range(3))
def test_integers_are_those_of_adaround(seed: int) -> None:
    problem = random_problem(6, 24, seed=seed, dtype=torch.float64)
    wanted, v = adaround(problem, 100, 0.05, 0.01, 0.2)
    fitter = LearnedRounding(steps=100)
    start = rounded(problem)
    [free, _] = fitter._candidates(problem, start)
    sure = v.abs() >= 1e-4
    assert torch.equal(free.integers.double()[sure], wanted[sure])
    found = fitter(problem)
    assert bool(
        (found.loss(problem) <= LayerSolution(wanted.int(), found.scale).loss(problem)).all()
    )
    assert not torch.equal(found.integers, start.integers)


def test_the_soft_start_is_the_weight_and_the_committed_one_the_start() -> None:
    ratio = torch.tensor([0.2, 0.7, -1.5, 2.5, 3.9, -0.1], dtype=torch.float64)
    for integers in (ratio.round(), torch.tensor([1.0, 1.0, -1.0, 2.0, 2.0, 0.0]).double()):
        position = beside(ratio, integers)
        module = learned(position)
        assert torch.allclose(module(position).detach(), position, atol=1e-9)
        assert torch.equal(committed(module, position), integers)
        assert bool(((position - ratio).abs() <= (integers - ratio).abs()).all())
        near = (ratio - integers).abs() < 0.4999
        assert torch.equal(position[near], ratio[near])


@pytest.mark.parametrize("bits", [None, 16, 12, 9])
def test_no_row_is_worse_than_the_nearest_integers_within_the_budget(bits) -> None:
    problem = random_problem(12, 40, accumulator_bit_width=bits, tile_size=20)
    start, found = rounded(problem), learned_rounding(problem)
    for solution in (start, found):
        assert_feasible(problem, solution)
    assert bool((found.loss(problem) <= start.loss(problem)).all())
    assert found.loss(problem).sum() < start.loss(problem).sum()


def test_a_budget_is_needed_for_what_is_learned_without_one() -> None:
    free = learned_rounding(random_problem(12, 40))
    problem = random_problem(12, 40, accumulator_bit_width=12)
    assert largest_sum(problem, free.integers) > 2**11 - 1
    assert largest_sum(problem, learned_rounding(problem).integers) <= 2**11 - 1


def test_values_on_the_grid_and_within_the_budget_stay() -> None:
    problem = random_problem(12, 40, accumulator_bit_width=12)
    integers = rounded(problem).integers
    again = within(problem, integers * expanded(problem.scale, problem), problem.scale, 0.0)
    assert torch.equal(again.integers, integers)


@pytest.mark.parametrize("variable", ["scale", "both"])
def test_scales_are_learned_too(variable: str) -> None:
    problem = random_problem(8, 24, weight_bits=3)
    spec = f"learned_rounding:variable={variable},steps=300"
    found, start = method("solvers", spec)(problem), rounded(problem)
    assert bool((found.scale != problem.scale).any())
    assert found.loss(problem).sum() < start.loss(problem).sum()
    if variable == "scale":
        same = found.scale == problem.scale
        assert torch.equal(found.integers[same], start.integers[same])
    tied = replace(problem, scale=torch.full_like(problem.scale, 0.4), shared_scale=True)
    assert torch.equal(method("solvers", spec)(tied).scale, tied.scale)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "sign"])
def test_every_optimizer_learns(optimizer: str) -> None:
    problem = random_problem(8, 24)
    spec = f"learned_rounding:optimizer={optimizer},rate={0.05 if optimizer != 'sgd' else 1.0}"
    found, start = method("solvers", spec)(problem), rounded(problem)
    assert found.loss(problem).sum() < start.loss(problem).sum()


@pytest.mark.parametrize("quality", ["fast", "best"])
def test_another_solver_can_be_the_start(quality: str) -> None:
    problem = random_problem(8, 40, accumulator_bit_width=12, bias=True, mean=1.0)
    plain = method("solvers", "qronos")(problem, act_order=True, quality=quality)
    found = method("solvers", "learned_rounding:start=qronos")(
        problem, act_order=True, quality=quality
    )
    assert_feasible(problem, found)
    assert bool((found.loss(problem) <= plain.loss(problem) + 1e-9).all())


def test_a_wider_scope_gives_its_start() -> None:
    problem = random_problem(8, 24, accumulator_bit_width=12)
    found = method("solvers", "learned_rounding:scope=block")(problem)
    assert torch.equal(found.integers, rounded(problem).integers)


def test_the_better_of_two_is_told_row_by_row() -> None:
    problem = random_problem(6, 24)
    one = rounded(problem)
    other = replace(one, integers=one.integers.flip(1))
    kept = better(problem, one, other)
    losses = torch.stack([one.loss(problem), other.loss(problem)]).amin(0)
    assert torch.allclose(kept.loss(problem), losses)


def test_bad_options_are_named() -> None:
    for option in ("steps=0", "rate=-1", "warmup=2", "drop=1.5"):
        with pytest.raises(InvalidOption, match="LearnedRounding must be"):
            method("solvers", f"learned_rounding:{option}")
    with pytest.raises(InvalidOption, match="start from itself"):
        method("solvers", "learned_rounding:start=learned_rounding")
    with pytest.raises(InvalidOption, match="choose one of"):
        method("solvers", "learned_rounding:start=guess")(random_problem())
