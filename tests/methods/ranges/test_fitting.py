"""Ranges of inputs in floating-point formats, fitted by the methods of the room."""

from __future__ import annotations

import pytest
import torch
from brevitas.proxy import ActFloatQuantProxyFromInjector
from torch import nn

from brevitas_axe.formats import MINIFLOATS
from brevitas_axe.methods.ranges import fit_format_ranges
from brevitas_axe.methods.ranges.mse import mse
from brevitas_axe.model.apply.activations import set_input_bits
from brevitas_axe.model.apply.ranges import range_parameter
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from tests.model.apply.test_activations import Fork
from tests.model.test_prepare import X


def planned(format: str) -> tuple[nn.Module, torch.Tensor, nn.Module]:
    """A model with inputs in a format, what arrives at the first quantizer, and that quantizer."""
    torch.manual_seed(0)
    model = to_brevitas(Fork().eval(), as_batches([X]))
    plan = Plan.uniform(["stem", "left", "right"], LayerPrecision(input=format))
    set_input_bits(model, plan, (X,))
    seen: list[torch.Tensor] = []
    proxy = next(
        m
        for m in model.modules()
        if isinstance(m, ActFloatQuantProxyFromInjector) and m.is_quant_enabled
    )
    hook = proxy.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten()))
    model(X)
    hook.remove()
    return model, seen[0], proxy


@pytest.mark.parametrize("format", ["e2m1", "e4m3"])
def test_the_range_has_the_least_squared_error(format: str) -> None:
    model, x, proxy = planned(format)
    value = range_parameter(proxy)
    assert value is not None
    calibrated = value.item()
    known = MINIFLOATS[format]
    numbers = torch.tensor(known.integers, dtype=torch.float64)

    def error(largest: float) -> float:
        ratio = x.double() / (largest / known.integers[-1])
        nearest = numbers[torch.bucketize(ratio, (numbers[1:] + numbers[:-1]) / 2)]
        return float(((nearest - ratio) * largest).square().mean())

    shares = fit_format_ranges(model, as_batches([X]), "mse")
    found = value.item()
    assert found == pytest.approx(calibrated * next(iter(shares.values())))
    least = min(error(calibrated * share) for share in mse.shares)
    assert error(found) <= least * (1 + 1e-6)
    assert error(found) <= error(calibrated)


def test_where_nothing_is_a_format_nothing_runs() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    assert fit_format_ranges(model, [], "mse") == {}
