from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.transforms.protocol import Change
from brevitas_axe.methods.transforms.rounding_error import (
    best_change,
    input_step,
    output_error,
    rounded,
)
from brevitas_axe.methods.transforms.sites import find_sites
from brevitas_axe.plan import LayerPrecision
from tests.methods.transforms.formulas import WIDTHS
from tests.methods.transforms.nets import images, net

CALLS = [((x.double(),), {}) for x in images()]
NET = net().double()
SITES = {site.readers[0]: site for site in find_sites(NET, CALLS)}


def test_the_error_is_that_of_rounding_to_nearest_without_its_mean() -> None:
    site = SITES["up"]
    weight, x = NET.up.weight.detach(), site.sample
    steps = weight.abs().amax(1, keepdim=True) / 127
    near = rounded(x, input_step(x, 4), 4)
    wrong = near @ ((weight / steps).round() * steps).t() - x @ weight.t()
    wanted = float(wrong.var(0, correction=0).sum()) * len(x)
    assert output_error(site, Change(), WIDTHS) == pytest.approx(wanted, rel=1e-9)
    assert output_error(site, Change(), LayerPrecision()) == 0


def test_the_step_has_the_least_squared_error() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, generator=generator, dtype=torch.float64) ** 3
    step = input_step(x, 3)
    errors = [float((rounded(x, s, 3) - x).square().sum()) for s in step * torch.tensor([1, 3, 9])]
    assert step < x.abs().max() / 4 / 2  # an outlier does not set it
    assert errors == sorted(errors)
    assert set((rounded(x, step, 3) / step).round().tolist()) == set(range(-4, 4))


def test_the_best_change_is_the_first_of_the_best_or_none() -> None:
    site = SITES["up"]
    ones = torch.ones(len(site.low), dtype=torch.float64)
    same, worse = Change(scale=ones), Change(shift=1000 * ones)
    better = Change(scale=site.high.abs().maximum(site.low.abs()))
    assert best_change(site, WIDTHS, [worse, same]) is None
    assert best_change(site, WIDTHS, [same, worse, better, Change(better.scale)]) is better
    assert best_change(site, LayerPrecision(), [better]) is None
