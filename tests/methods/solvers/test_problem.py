"""A problem is refused when it is built, with a reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brevitas_axe.errors import AccumulatorTooNarrow, InvalidOption, InvalidTile, NonFiniteValues
from brevitas_axe.methods.solvers import LayerSolution
from brevitas_axe.methods.solvers.problem import UNLIMITED
from tests.methods.solvers.layers import random_problem


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize(
    "field", ["weight", "hessian", "cross", "scale", "quant_mean", "float_mean"]
)
def test_values_that_are_not_finite(field: str, bad: float) -> None:
    problem = random_problem(bias=True)
    broken = getattr(problem, field).clone()
    broken[..., -1] = bad
    with pytest.raises(NonFiniteValues, match=field):
        replace(problem, **{field: broken})


def test_large_finite_values_are_accepted() -> None:
    # Their float32 sum is infinite.
    problem = random_problem(4, 8)
    replace(problem, hessian=torch.full((1, 8, 8), 3e38))


@pytest.mark.parametrize(
    ("error", "changes"),
    [
        (AccumulatorTooNarrow, {"accumulator_bit_width": 1}),
        (InvalidOption, {"accumulator_bit_width": 63}),
        (InvalidTile, {"tile_size": 0}),
        (InvalidTile, {"tile_size": 5, "tile_starts": (0, 5)}),
        (InvalidTile, {"tile_starts": ()}),
        (InvalidTile, {"tile_starts": (1, 5)}),
        (InvalidTile, {"tile_starts": (0, 5, 5)}),
        (InvalidTile, {"tile_starts": (0, 24)}),
        (AccumulatorTooNarrow, {"accumulator_bit_width": torch.tensor([1])}),
        (InvalidOption, {"accumulator_bit_width": torch.tensor([63])}),
        (InvalidOption, {"accumulator_bit_width": torch.tensor([8, 8])}),
        (InvalidOption, {"accumulator_bit_width": torch.tensor([8.0])}),
        (InvalidOption, {"weight_low": 1}),
        (InvalidOption, {"weight_high": torch.full((24,), -1)}),
        (InvalidOption, {"weight_high": torch.ones(23, dtype=torch.int64)}),
        (InvalidOption, {"weight_high": torch.ones(24)}),
        (InvalidOption, {"weight_high": torch.full((24,), 2**60)}),
        (InvalidOption, {"input_low": 1}),
        (InvalidOption, {"input_high": -1}),
        (InvalidOption, {"input_high": 2**60}),
        (InvalidOption, {"scale": torch.zeros(1, 6)}),
        (InvalidOption, {"scale": torch.ones(1, 5)}),
        (InvalidOption, {"cross": torch.ones(1, 5, 5)}),
        (InvalidOption, {"weight": torch.ones(6, 24)}),
        (InvalidOption, {"quant_mean": torch.ones(1, 24)}),
    ],
)
def test_impossible_problems(error: type[Exception], changes: dict) -> None:
    with pytest.raises(error):
        random_problem(**changes)
    with pytest.raises(error, match=r"layer 'block\.fc1'"):
        random_problem(**changes, name="block.fc1")


def test_tiles() -> None:
    problem = random_problem(2, 24, tile_size=10)
    assert problem.tiles == 3
    assert problem.tile_of_column.bincount().tolist() == [10, 10, 4]
    assert replace(problem, tile_size=100).tiles == 1
    uneven = replace(problem, tile_size=None, tile_starts=(0, 1, 20))
    assert uneven.tile_of_column.bincount().tolist() == [1, 19, 4]


def test_a_tile_without_a_limit_counts_no_inputs() -> None:
    widths = torch.tensor([8, UNLIMITED])
    problem = random_problem(2, 24, tile_starts=(0, 9), accumulator_bit_width=widths)
    assert problem.tile_bit_widths == (8, None)
    assert problem.tile_limits.tolist() == [127, 0]
    low, high = problem.counted_range
    assert not low.any()
    assert high[0].tolist() == [255] * 9 + [0] * 15
    assert not problem.unlimited
    assert replace(problem, accumulator_bit_width=torch.tensor([UNLIMITED] * 2)).unlimited


def test_loss_is_that_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    quantized, inputs = torch.randn(2, 50, 7, generator=generator, dtype=torch.float64)
    quantized, inputs = quantized + 1, inputs + 2
    weight = torch.randn(1, 3, 7, generator=generator, dtype=torch.float64)
    problem = random_problem(
        3,
        7,
        weight=weight,
        hessian=(quantized.T @ quantized / 50)[None],
        cross=(quantized.T @ inputs / 50)[None],
        quant_mean=quantized.mean(0)[None],
        float_mean=inputs.mean(0)[None],
        scale=torch.full((1, 3), 0.3),
    )
    integers = torch.randint(-7, 8, (1, 3, 7), generator=generator, dtype=torch.int32)
    output = weight[0] @ inputs.T
    error = output - 0.3 * integers[0].double() @ quantized.T
    constant = output.square().mean(1)
    plain = LayerSolution(integers, problem.scale.double() * 0 + 0.3)
    torch.testing.assert_close(plain.loss(problem)[0] + constant, error.square().mean(1))
    shifted = replace(plain, bias_shift=error.mean(1)[None])
    expected = (error - error.mean(1, keepdim=True)).square().mean(1)
    torch.testing.assert_close(shifted.loss(problem)[0] + constant, expected)


def test_weights_of_one_bit_must_fit_whatever_their_signs() -> None:
    ends = {"weight_low": -1, "weight_high": 1, "binary": True, "tile_size": 8}
    fits = random_problem(input_bits=8, accumulator_bit_width=12, **ends)
    assert fits.binary_columns.all()
    assert fits.nearest(torch.tensor([-0.0, 0.2, -0.2] * 8)).abs().eq(1).all()
    with pytest.raises(AccumulatorTooNarrow, match=r"never 0, so 8 of them do not fit .* 11 bits"):
        random_problem(input_bits=8, accumulator_bit_width=11, **ends)
    with pytest.raises(InvalidOption, match="must range from -1 to 1"):
        random_problem(binary=True)
