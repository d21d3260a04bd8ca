"""Second moments of layer inputs, against the plain formula."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from torch import nn

from brevitas_axe.errors import EmptyCalibration, NonFiniteValues
from brevitas_axe.model import moments as room
from brevitas_axe.model.layers import unroll_input
from brevitas_axe.model.moments import Moments
from brevitas_axe.run.quantize import quantize

LAYERS = {
    "linear": (lambda: qnn.QuantLinear(9, 4), (12, 9)),
    "linear 4-D": (lambda: qnn.QuantLinear(9, 4), (2, 2, 3, 9)),
    "conv": (lambda: qnn.QuantConv2d(4, 6, 3, groups=2, padding=1), (5, 4, 6, 6)),
    "transposed": (lambda: qnn.QuantConvTranspose1d(3, 4, 3, stride=2), (5, 3, 6)),
}


@pytest.mark.parametrize("chunk", [2**20, 200])
@pytest.mark.parametrize("kind", LAYERS)
def test_moments_are_those_of_all_columns(kind, chunk, monkeypatch):
    monkeypatch.setattr(room, "_CHUNK", chunk)
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make()
    quants = [torch.randn(shape), torch.randn(shape)[:1]]
    reals = [x + 0.1 * torch.randn(x.shape) for x in quants]
    moments = Moments("l", layer, cross=True)
    for quant, real in zip(quants, reals, strict=True):
        moments.add(quant, real)
    result = moments.finish(torch.float64)
    quant, real = (
        torch.cat([unroll_input(layer, x.double()) for x in xs], -1) for xs in (quants, reals)
    )
    assert moments.samples == quant.shape[-1]
    expected = {
        "hessian": quant @ quant.mT / moments.samples,
        "cross": quant @ real.mT / moments.samples,
        "quant_mean": quant.mean(-1),
        "float_mean": real.mean(-1),
    }
    for name, value in expected.items():
        assert torch.allclose(result[name], value, rtol=1e-4, atol=1e-5), name


@pytest.mark.parametrize(("samples", "share"), [(4, 0), (5, 0), (14, 0.2), (50, 1), (80, 1)])
def test_with_few_samples_inputs_count_as_exact_and_with_many_in_full(samples, share):
    quant, real = torch.randn(2, samples, 5, generator=torch.Generator().manual_seed(0)).double()
    moments = Moments("l", qnn.QuantLinear(5, 2), cross=True)
    moments.add(quant, real)
    result, plain = moments.finish(torch.float64, shrink=True), moments.finish(torch.float64)
    for name, first, other in (
        ("cross", quant.mT @ quant / samples, quant.mT @ real / samples),
        ("float_mean", quant.mean(0), real.mean(0)),
    ):
        torch.testing.assert_close(result[name][0], (1 - share) * first + share * other)
        torch.testing.assert_close(plain[name][0], other)
    assert torch.equal(result["hessian"], plain["hessian"])


def test_weights_that_make_up_for_input_errors_are_not_learned_by_heart():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    few, others = torch.randn(64, 64), torch.randn(512, 64)
    errors = {}
    for quality in ("fast", "best"):  # the published algorithm, and ours
        widths = {"weight_bit_width": 8, "input_bit_width": 4, "accumulator_bit_width": None}
        result = quantize(net, [few], solver="qronos", quality=quality, progress=False, **widths)
        with torch.no_grad():
            errors[quality] = float((net(others) - result.model(others)).norm())
    assert errors["best"] < 0.8 * errors["fast"]


def test_without_cross_there_are_no_float_statistics():
    moments = Moments("l", qnn.QuantLinear(3, 2), cross=False)
    moments.add(torch.ones(4, 3))
    result = moments.finish()
    assert result["cross"] is None
    assert result["float_mean"] is None
    assert torch.equal(result["hessian"], torch.ones(1, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_wider_numbers(dtype):
    moments = Moments("l", qnn.QuantLinear(1, 1), cross=False)
    moments.add(torch.full((5000, 1), 16.0, dtype=dtype))  # 1.28e6 is past float16
    assert float(moments.finish()["hessian"]) == 256.0


def test_an_unbatched_image_is_one_sample():
    layer = qnn.QuantConv2d(2, 3, 3)
    one, other = Moments("l", layer, cross=False), Moments("l", layer, cross=False)
    x = torch.randn(2, 5, 5)
    one.add(x)
    other.add(x[None])
    assert torch.equal(one.finish()["hessian"], other.finish()["hessian"])


def test_nothing_seen_and_not_finite_are_named():
    moments = Moments("the.layer", qnn.QuantLinear(2, 2), cross=False)
    with pytest.raises(EmptyCalibration, match=r"'the\.layer'"):
        moments.finish()
    moments.add(torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(NonFiniteValues, match=r"'the\.layer'"):
        moments.finish()


def test_non_finite_float_inputs_are_named_too():
    moments = Moments("the.layer", qnn.QuantLinear(2, 2), cross=True)
    moments.add(torch.ones(1, 2), torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(NonFiniteValues, match=r"'the\.layer'"):
        moments.finish()
