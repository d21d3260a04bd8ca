"""Numbers of formats that are decided column after column."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from brevitas_axe.formats import MINIFLOATS
from brevitas_axe.methods.solvers import LayerProblem
from brevitas_axe.methods.solvers.gpfq import gpfq
from brevitas_axe.methods.solvers.gptq import gptq
from brevitas_axe.methods.solvers.nearest import nearest
from brevitas_axe.methods.solvers.qronos import qronos
from tests.methods.solvers.layers import assert_feasible, largest_sum
from tests.methods.solvers.test_nearest import float_problem

SOLVERS = {"gpfq": gpfq, "gptq": gptq, "qronos": qronos}


@pytest.mark.parametrize(
    ("name", "quality"), [*((name, "fast") for name in SOLVERS), ("gptq", "best")]
)
@pytest.mark.parametrize(
    ("format", "bits", "tile"), [("e2m1", None, None), ("e2m3", 14, None), ("e4m3", 24, 8)]
)
def test_no_row_is_worse_than_the_nearest_numbers(name, quality, format, bits, tile) -> None:
    problem = float_problem(format, bits, tile_size=tile, mean=1.0)
    found = SOLVERS[name](problem, quality=quality)
    plain = nearest(problem, quality=quality)
    assert bool((found.loss(problem) <= plain.loss(problem) + 1e-9).all())
    assert found.loss(problem).sum() < plain.loss(problem).sum()
    assert set(found.integers.flatten().tolist()) <= set(MINIFLOATS[format].integers)
    assert_feasible(problem, found)
    if bits is not None:
        assert 0 < largest_sum(problem, found.integers) <= 2 ** (bits - 1) - 1


def test_wide_formats_are_exact() -> None:
    problem = replace(float_problem("e5m2"), input_low=-(2**32), input_high=2**32)
    numbers = gptq(problem).integers
    assert numbers.dtype == torch.int64
    assert set(numbers.flatten().tolist()) <= set(MINIFLOATS["e5m2"].integers)


@pytest.mark.parametrize("options", [{"shared_scale": True}, {"power_of_two": True}])
def test_scales_stay_together_and_powers_of_two(options: dict) -> None:
    problem = float_problem("e2m1", 13, bias=True)
    problem = replace(problem, scale=torch.full_like(problem.scale, 0.25), **options)
    found = gptq(problem, quality="best")
    exponent = (found.scale / problem.scale).log2()
    assert "shared_scale" not in options or found.scale.unique().numel() == 1
    assert "power_of_two" not in options or torch.equal(exponent, exponent.round())
    assert found.bias_shift is not None
    assert found.loss(problem).sum() <= nearest(problem, quality="best").loss(problem).sum() + 1e-9


def published(problem: LayerProblem) -> torch.Tensor:
    """OPTQ as its authors write it, with the inverse of the moments and a table of the numbers."""
    numbers = torch.tensor(MINIFLOATS["e2m1"].integers, dtype=torch.float64)
    moments = problem.hessian[0] + 0.01 * problem.hessian[0].diagonal().mean() * torch.eye(20)
    factor = torch.linalg.cholesky(torch.linalg.inv(moments), upper=True)
    weight, scale = problem.weight[0].clone(), problem.scale[0]
    decided = torch.zeros_like(weight, dtype=torch.int64)
    for k in range(20):
        ratio = weight[:, k] / scale
        decided[:, k] = numbers[(ratio[:, None] - numbers).abs().argmin(-1)].to(torch.int64)
        miss = (weight[:, k] - scale * decided[:, k]) / factor[k, k]
        weight[:, k:] -= miss[:, None] * factor[k, k:]
    return decided


def test_rows_are_those_of_the_published_algorithm_or_the_nearest_ones() -> None:
    problem = float_problem("e2m1")
    found, theirs = gptq(problem).integers[0], published(problem)
    same = (found == theirs).all(-1)
    assert bool((same & (theirs != nearest(problem).integers[0]).any(-1)).any())
    assert torch.equal(found[~same], nearest(problem).integers[0][~same])


def test_inputs_that_do_not_go_together_leave_the_nearest_numbers() -> None:
    problem = float_problem("e3m2")
    apart = torch.eye(20, dtype=torch.float64).unsqueeze(0)
    problem = replace(problem, hessian=apart, cross=apart)
    assert torch.equal(gptq(problem).integers, nearest(problem).integers)
