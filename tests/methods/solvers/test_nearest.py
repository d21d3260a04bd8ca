"""`nearest`: the nearest number of a format, within the accumulator, and at the best scale."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.formats import MINIFLOATS
from brevitas_axe.methods.solvers import LayerProblem
from brevitas_axe.methods.solvers.gptq import gptq
from brevitas_axe.methods.solvers.learned_rounding import learned_rounding
from brevitas_axe.methods.solvers.nearest import nearest
from brevitas_axe.methods.solvers.protocol import for_floats
from tests.methods.solvers.layers import largest_sum, random_problem


def float_problem(format: str, bits: int | None = None, **options) -> LayerProblem:
    known = MINIFLOATS[format]
    problem = random_problem(5, 20, accumulator_bit_width=bits, dtype=torch.float64, **options)
    return replace(
        problem,
        scale=problem.weight.abs().amax(-1) / known.integers[-1],
        weight_low=known.integers[0],
        weight_high=known.integers[-1],
        significant=known.significant,
    )


@pytest.mark.parametrize("format", MINIFLOATS)
def test_each_weight_becomes_the_nearest_number(format: str) -> None:
    problem = float_problem(format)
    solution = nearest(problem)
    numbers = torch.tensor(MINIFLOATS[format].integers, dtype=torch.float64)
    ratio = problem.weight / problem.scale.unsqueeze(-1)
    least = (ratio.unsqueeze(-1) - numbers).abs().amin(-1)
    assert torch.equal((ratio - solution.integers).abs(), least)
    assert set(solution.integers.flatten().tolist()) <= set(MINIFLOATS[format].integers)


@pytest.mark.parametrize("quality", ["fast", "best"])
@pytest.mark.parametrize(("format", "bits"), [("e2m1", 12), ("e2m3", 14), ("e4m3", 24)])
@pytest.mark.parametrize("tile", [None, 6])
def test_sums_fit_and_tiles_that_fit_are_untouched(format, bits, tile, quality) -> None:
    problem = float_problem(format, bits, tile_size=tile)
    solution = nearest(problem, quality=quality)
    limit = 2 ** (bits - 1) - 1
    assert 0 < largest_sum(problem, solution.integers) <= limit
    assert set(solution.integers.flatten().tolist()) <= set(MINIFLOATS[format].integers)
    wide = replace(problem, accumulator_bit_width=61)
    assert torch.equal(nearest(wide).integers, nearest(float_problem(format)).integers)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("options", [{}, {"shared_scale": True}, {"power_of_two": True}])
def test_the_best_scale_loses_no_row(options: dict, bias: bool) -> None:
    problem = float_problem("e2m1", 13, bias=bias)
    if options:
        problem = replace(problem, scale=torch.full_like(problem.scale, 0.25), **options)
    fast, best = (nearest(problem, quality=quality) for quality in ("fast", "best"))
    before, after = fast.loss(problem), best.loss(problem)
    if "shared_scale" in options:
        assert best.scale.unique().numel() == 1
        before, after = before.sum(), after.sum()
    assert bool((after <= before + 1e-9).all())
    if not options:
        assert after.sum() < before.sum()
    if "power_of_two" in options:
        exponent = (best.scale / problem.scale).log2()
        assert torch.equal(exponent, exponent.round())


def test_an_unknown_quality_is_refused() -> None:
    with pytest.raises(InvalidOption, match="quality"):
        nearest(random_problem(), quality="better")  # type: ignore[arg-type]


def test_a_solver_of_integers_leaves_floats_to_one_that_rounds_them() -> None:
    assert for_floats(learned_rounding) is not learned_rounding
    assert for_floats(gptq) is gptq
    assert for_floats(nearest) is nearest
