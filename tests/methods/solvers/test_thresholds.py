"""The published threshold is a Euclidean projection on the l1 ball."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from brevitas_axe.methods.solvers.kernels import l1_thresholds
from brevitas_axe.methods.solvers.problem import UNLIMITED
from brevitas_axe.methods.solvers.thresholds import published_threshold
from tests.methods.solvers.layers import random_problem


@pytest.mark.parametrize("tile", [None, 10, 24, 1])
@pytest.mark.parametrize("bits", [6, 9, 12, 30])
def test_shrunk_tiles_lie_on_the_ball(tile: int | None, bits: int) -> None:
    problem = random_problem(5, 24, tile_size=tile, accumulator_bit_width=bits, dtype=torch.float64)
    threshold = published_threshold(problem, problem.tile_scale)
    radius = (2**bits - 2) / 255 * problem.scale
    for index, part in enumerate(problem.weight.split(tile or 24, dim=-1)):
        size = (part - part.mean(-1, keepdim=True)).abs()
        shrunk = (size - threshold[:, :, index : index + 1]).clamp_min(0).sum(-1)
        expected = torch.where(size.sum(-1) <= radius, size.sum(-1), radius)
        torch.testing.assert_close(shrunk, expected)


def test_every_tile_has_a_ball_of_its_own() -> None:
    problem = random_problem(
        5,
        24,
        tile_starts=(0, 3, 17),
        accumulator_bit_width=torch.tensor([8, UNLIMITED, 10]),
        dtype=torch.float64,
    )
    threshold = published_threshold(problem, problem.tile_scale)
    assert not threshold[..., 1].any()
    for tile, columns, bits in ((0, slice(3), 8), (2, slice(17, 24), 10)):
        part = problem.weight[..., columns]
        alone = replace(
            problem,
            weight=part,
            hessian=problem.hessian[:, columns, columns],
            cross=None,
            tile_starts=None,
            accumulator_bit_width=bits,
        )
        wanted = published_threshold(alone, alone.tile_scale)
        assert wanted.any()
        torch.testing.assert_close(threshold[..., tile : tile + 1], wanted)


def test_no_threshold_without_a_limit() -> None:
    problem = random_problem(5, 24)
    assert not published_threshold(problem, problem.tile_scale).any()
    constant = replace(problem, accumulator_bit_width=8, input_low=0, input_high=0)
    assert not published_threshold(constant, problem.tile_scale).any()


def test_rounding_does_not_keep_the_iteration_going() -> None:
    # From the random layers: its active entries grew and shrank in turn, without end.
    tile = [0.0, 0.0005994044477120042, 0.0010873940773308277, -0.0015960977179929614]
    weight = np.array([[*tile, 0.0008230374660342932, 0.0]], np.float32)
    radius, threshold = 0.003192195435985923, np.empty((1, 1), np.float32)
    l1_thresholds(weight, np.array([0, 6]), np.array([[radius]], np.float32), threshold)
    shrunk = np.maximum(abs(weight - weight.mean()) - threshold, 0)
    assert abs(shrunk.sum() - radius) < 1e-8
