"""A range for every width, which follows the bits."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8ActPerTensorFixedPoint,
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
)
from torch import nn

from brevitas_axe import Int8WeightPerChannelFloatAXE
from brevitas_axe.errors import EmptyCalibration, InvalidOption
from brevitas_axe.methods.inputs.protocol import input_quantizer
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.methods.sensitivity import make_choices, score
from brevitas_axe.model.apply.activations import activation_quantizers, set_bits, set_input_bits
from brevitas_axe.model.apply.ranges import current_bits, range_parameter
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.registry import method

DYNAMIC = input_quantizer(method("inputs", "dynamic"), True)
X = torch.randn(512, 16, generator=torch.Generator().manual_seed(0))


def net(quantizer=Int8ActPerTensorFloat) -> nn.Module:
    torch.manual_seed(0)
    options = {"weight_quant": Int8WeightPerChannelFloatAXE, "input_quant": quantizer}
    model = nn.Sequential(qnn.QuantLinear(16, 8, True, **options), nn.ReLU())
    model.append(qnn.QuantLinear(8, 4, True, **options))
    with torch.no_grad(), calibration_mode(model):
        model(X)
    return model.eval()


def error(model: nn.Module, bits: int) -> float:
    """Squared error of the first layer's input at a width, measured here."""
    proxies = activation_quantizers(model)["0.input_quant"]
    set_bits(proxies, bits)
    with torch.no_grad():
        return float((proxies[0](X).value - X).square().mean())


@pytest.mark.parametrize("quantizer", [Int8ActPerTensorFloat, Int8ActPerTensorFixedPoint])
def test_fitted_ranges_have_less_error_at_few_bits(quantizer) -> None:
    calibrated, fitted = net(quantizer), net(quantizer)
    shares = fit_ranges(fitted, [X])
    assert set(shares) == {"0.input_quant", "2.input_quant"}
    for bits in range(2, 9):
        assert error(fitted, bits) <= error(calibrated, bits)
    assert error(fitted, 3) < 0.8 * error(calibrated, 3)
    assert shares["0.input_quant"][2] < shares["0.input_quant"][4] <= shares["0.input_quant"][8]


def test_the_range_of_gaussian_numbers_is_the_known_one() -> None:
    """Best uniform quantizer of 16 levels: step .3352 standard deviations (Max 1960, table II)."""
    model = net()
    fit_ranges(model, [X], bits=[4])
    error(model, 4)
    proxy = activation_quantizers(model)["0.input_quant"][0]
    assert proxy(X).scale.item() / X.std().item() == pytest.approx(0.3352, rel=0.1)


def test_the_range_follows_every_change_of_bits_and_comes_back() -> None:
    model = net()
    fit_ranges(model, [X])
    proxies = activation_quantizers(model)["0.input_quant"]
    assert current_bits(proxies[0]) == 8
    scale = proxies[0](X).scale.item()
    plan = Plan({"0": LayerPrecision(input=3), "2": LayerPrecision(input=8)})
    planned = copy.deepcopy(model)
    set_input_bits(planned, plan, (X[:1],))
    coarse = activation_quantizers(planned)["0.input_quant"][0]
    assert coarse(X).scale.item() < 36 * scale  # 255/7 is what the same range would give
    set_bits(proxies, 3)
    assert proxies[0](X).scale.item() == coarse(X).scale.item()
    set_bits(proxies, 8)
    assert proxies[0](X).scale.item() == scale


def test_fitting_again_starts_from_the_calibrated_range() -> None:
    model = net()
    first = fit_ranges(model, [X])["0.input_quant"]
    set_bits(activation_quantizers(model)["0.input_quant"], 2)
    assert fit_ranges(model, [X])["0.input_quant"] == first
    value = range_parameter(activation_quantizers(model)["0.input_quant"][0])
    with torch.no_grad():
        value *= 0.5  # as training or another calibration would
    assert fit_ranges(model, [X])["0.input_quant"][2] > first[2]


def test_a_width_between_the_fitted_ones_leads_back_to_the_calibrated_range() -> None:
    model = net()
    first = fit_ranges(model, [X], bits=(2, 8))["0.input_quant"]
    set_bits(activation_quantizers(model)["0.input_quant"], 3)  # takes the range of 2 bits
    assert fit_ranges(model, [X], bits=(2, 8))["0.input_quant"][2] == first[2]


def test_the_bits_that_a_model_has_do_not_change_what_is_fitted() -> None:
    models = [net(), net()]
    for proxies in activation_quantizers(models[0]).values():
        set_bits(proxies, 2)
    found = [fit_ranges(model, [X], bits=(2, 4)) for model in models]
    for name, shares in found[0].items():
        assert {bits: shares[bits] for bits in (2, 4)} == {b: found[1][name][b] for b in (2, 4)}


@pytest.mark.parametrize(("quantizer", "runs"), [(Int8ActPerTensorFloat, 3), (DYNAMIC, 0)])
def test_a_model_runs_once_per_batch_and_not_at_all_without_a_static_range(quantizer, runs) -> None:
    model, calls = net(quantizer), []
    # A copy of the model counts in the same list, for a function is not copied.
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    fit_ranges(model, X.split(200))
    assert len(calls) == runs


def test_scores_see_the_fitted_ranges() -> None:
    harms = []
    for fitted in (False, True):
        model = net()
        if fitted:
            fit_ranges(model, [X])
        choices = make_choices(model, (X[:1],), weight=(8,), input=(2,), accumulator=(None,))
        harms.append(score(model, [X], choices, metric="mse").harm)
    assert all(harms[1][name][0] < harms[0][name][0] for name in harms[0])


@pytest.mark.parametrize("kind", [qnn.QuantSigmoid, qnn.QuantTanh, qnn.QuantReLU])
def test_what_is_rounded_is_what_the_activation_function_gives(kind) -> None:
    model = nn.Sequential(kind(return_quant_tensor=True))
    with torch.no_grad(), calibration_mode(model):
        model(X)
    model.eval()
    real = {qnn.QuantSigmoid: torch.sigmoid, qnn.QuantTanh: torch.tanh, qnn.QuantReLU: torch.relu}
    wanted = real[kind](X)
    with torch.no_grad():
        calibrated = (model(X).value - wanted).square().mean()
        [shares] = fit_ranges(model, [X], bits=[8]).values()
        assert (model(X).value - wanted).square().mean() <= calibrated * 1.01  # a sample is fitted
    assert shares[8] > 0.7


class Shared(nn.Module):
    """A ReLU and a signed quantizer with one range, as in front of a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = qnn.QuantReLU()
        self.signed = qnn.QuantIdentity(Int8ActPerTensorFloat)
        grids = [each.act_quant.fused_activation_quant_proxy for each in (self.relu, self.signed)]
        grids[1].tensor_quant.scaling_impl = grids[0].tensor_quant.scaling_impl
        grids[0].tensor_quant.int_scaling_impl = grids[1].tensor_quant.int_scaling_impl

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x) + self.signed(2 * x)


def test_every_quantizer_of_a_shared_range_rounds_its_own_numbers() -> None:
    model = Shared()
    with torch.no_grad(), calibration_mode(model):
        model(X)
    model.eval()
    [(name, proxies)] = activation_quantizers(model).items()
    value = range_parameter(proxies[0])
    assert len(proxies) == 2
    assert value is not None
    [shares] = fit_ranges(model, [X], bits=[4]).values()
    set_bits(proxies, 4)

    def squared(share: float) -> float:
        with torch.no_grad():
            value.fill_(share)
            errors = model.relu(X) - X.relu(), model.signed(2 * X) - 2 * X
            return float(sum(each.square().sum() for each in errors))

    calibrated = value.item() / shares[4]
    candidates = method("ranges", "mse").shares
    best = min(candidates, key=lambda share: squared(share * calibrated))
    assert shares[4] == pytest.approx(best)
    assert best < 1, name


def test_a_quantizer_with_a_zero_point_keeps_its_range() -> None:
    model = nn.Sequential(qnn.QuantIdentity(ShiftedUint8ActPerTensorFloat), nn.Linear(16, 4))
    with torch.no_grad(), calibration_mode(model):
        model(X)
    model.eval()
    before = [parameter.clone() for parameter in model.parameters()]
    assert fit_ranges(model, [X]) == {}
    assert all(map(torch.equal, model.parameters(), before))


def test_bad_input_is_named() -> None:
    with pytest.raises(InvalidOption, match="2 bits or more"):
        fit_ranges(net(), [X], bits=[1, 2])
    with pytest.raises(EmptyCalibration):
        fit_ranges(net(), [])


def test_a_range_that_calibration_left_too_narrow_is_widened() -> None:
    """A quantizer that two calls share was calibrated with the mean of both."""
    model, x = net(), 3 * X
    [proxy] = activation_quantizers(model)["0.input_quant"]
    calibrated = range_parameter(proxy)
    assert calibrated is not None
    before = float(x.abs().max()) / float(calibrated.detach())
    assert before > 2
    shares = fit_ranges(model, [x], bits=[2, 8])["0.input_quant"]
    assert shares[8] > 1.5
    assert shares[8] <= before / 0.15 ** (1 / 24)
    assert shares[2] < shares[8]
    with torch.no_grad():
        rounded = proxy(x).value
    assert float((rounded - x).norm() / x.norm()) < 0.02
