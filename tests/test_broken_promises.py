"""Nine promises that the authors' code breaks (Brevitas 0.13.4), each kept here or refused by name.

Where it is cheap, a test shows the breach first.
"""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int16Bias,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas_examples.common.axe import a2gpfq_mode, a2gptq_mode
from torch import nn

from brevitas_axe.accumulator import required_bit_width, worst_case_sums
from brevitas_axe.errors import NonFiniteValues, UnsupportedLayer
from brevitas_axe.model.layers import find_layers, integer_weight, unroll_weight
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify
from brevitas_axe.registry import methods
from brevitas_axe.run.solve import axe_mode
from tests.calibration import calibrated

pytestmark = pytest.mark.filterwarnings(
    "ignore:Computing zero point of output accumulator:UserWarning"
)


class FixedScaleWeight(Int8WeightPerChannelFloat):
    """Its scale does not move, so that other promises can be looked at alone."""

    scaling_impl_type = "parameter_from_stats"


def linear(inputs: int, outputs: int, weight=FixedScaleWeight, act=Uint8ActPerTensorFloat, **more):
    options = {"weight_quant": weight, "weight_bit_width": 4, "input_quant": act, **more}
    return qnn.QuantLinear(inputs, outputs, **options)


def theirs(model: nn.Module, x: torch.Tensor, bits: int, mode=a2gptq_mode) -> nn.Module:
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mode(model, max_accumulator_bit_width=bits) as running:
            for _ in range(running.num_layers):
                running.model(x)
                running.update()
    return model


def ours(model: nn.Module, x: torch.Tensor, bits: int | None, **options) -> nn.Module:
    with (
        torch.no_grad(),
        axe_mode(model, accumulator_bit_width=bits, **{"quality": "fast", **options}) as axe,
    ):
        axe.model(x)
        while axe.update():
            pass
    return model


def width(layer: nn.Module, low: int = 0, high: int = 255, tile: int | None = None) -> int:
    """Bits that the layer's accumulator really needs."""
    with torch.no_grad():
        rows = unroll_weight(layer, integer_weight("layer", layer)[0]).flatten(0, 1)
    minimum, maximum = worst_case_sums(rows.numpy(), low, high, tile)
    return required_bit_width(minimum.min(), maximum.max())


def test_1_the_default_quantizer_holds_the_width():
    """Its scale is a statistic of the weights, and moves when the solver moves them."""
    torch.manual_seed(0)
    x = torch.rand(256, 128)
    model = calibrated(nn.Sequential(linear(128, 16, Int8WeightPerChannelFloat)), x)
    assert width(theirs(copy.deepcopy(model), x, 12)[0]) > 12
    for solver in methods("solvers"):
        for quality in ("fast", "best"):
            solved = ours(copy.deepcopy(model), x, 12, solver=solver, quality=quality)
            assert width(solved[0]) <= 12


class Twice(nn.Module):
    """One layer for a narrow and for a wide input."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow = qnn.QuantIdentity(
            Uint8ActPerTensorFloat, bit_width=2, return_quant_tensor=True
        )
        self.wide = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True)
        self.layer = linear(64, 64, act=None)

    def forward(self, x):
        return self.layer(self.wide(self.layer(self.narrow(x))))


def test_2a_a_module_called_twice_holds_for_both_inputs():
    """The bound is taken from the first call only."""
    torch.manual_seed(0)
    x = torch.rand(128, 64)
    model = calibrated(Twice(), x)
    assert width(theirs(copy.deepcopy(model), x, 12).layer, -128, 127) > 12
    assert width(ours(model, x, 12).layer, -128, 127) <= 12


def test_2b_tied_weights_hold_for_every_layer():
    """The layer solved last overwrites the others."""
    torch.manual_seed(0)
    x = torch.rand(128, 64)
    model = nn.Sequential(linear(64, 64), nn.ReLU(), linear(64, 64, input_bit_width=4))
    model[2].weight = model[0].weight
    calibrated(model, x)
    assert width(theirs(copy.deepcopy(model), x, 12, a2gpfq_mode)[0]) > 12
    ours(model, x, 12, solver="gpfq")
    assert width(model[0]) <= 12
    assert width(model[2], 0, 15) <= 12


def test_3_bad_statistics_are_named_and_singular_ones_solved():
    """NaN or a failed Cholesky leaves the layer unconstrained with a warning."""
    torch.manual_seed(0)
    x = torch.rand(64, 48)
    model = calibrated(nn.Sequential(linear(48, 16)), x)
    bad = x.clone()
    bad[0, 0] = float("nan")
    assert width(theirs(copy.deepcopy(model), bad, 10)[0]) > 10
    for solver in methods("solvers"):
        with pytest.raises(NonFiniteValues, match="layer '0'"):
            ours(copy.deepcopy(model), bad, 10, solver=solver)
        for singular in (x[:1], torch.zeros_like(x), x[:, :1].expand(-1, 48)):
            assert width(ours(copy.deepcopy(model), singular, 10, solver=solver)[0]) <= 10


def test_4_an_exception_leaves_no_hook_behind():
    """Every later forward raises."""
    torch.manual_seed(0)
    x = torch.rand(8, 16)
    model = calibrated(nn.Sequential(linear(16, 4)), x)
    broken = copy.deepcopy(model)
    with pytest.raises(KeyboardInterrupt), a2gptq_mode(broken, max_accumulator_bit_width=12):
        raise KeyboardInterrupt
    with pytest.raises(Exception), torch.no_grad():  # noqa: B017, PT011
        broken(x)
    mode = axe_mode(model, accumulator_bit_width=12)
    with pytest.raises(KeyboardInterrupt), torch.no_grad(), mode as axe:  # noqa: PT012
        axe.model(x)
        raise KeyboardInterrupt
    assert model(x).isfinite().all()


def test_5a_linear_layers_take_inputs_of_any_dimension():
    """4-D inputs crash."""
    torch.manual_seed(0)
    x = torch.rand(4, 3, 5, 48)
    model = calibrated(nn.Sequential(linear(48, 8)), x)
    with pytest.raises((RuntimeError, ValueError)):
        theirs(copy.deepcopy(model), x, 12)
    flat = ours(copy.deepcopy(model), x.flatten(0, 2), 12)
    assert torch.equal(ours(model, x, 12)[0].weight, flat[0].weight)
    assert width(model[0]) <= 12


class Attention(nn.Module):
    def __init__(self, packed: bool) -> None:
        super().__init__()
        self.attention = qnn.QuantMultiheadAttention(32, 2, packed_in_proj=packed)

    def forward(self, x):
        return self.attention(x, x, x)[0]


@pytest.mark.parametrize("packed", [True, False])
def test_5b_attention_projections_hold(packed):
    """They stay unconstrained without a word."""
    torch.manual_seed(0)
    x = torch.randn(6, 8, 32)
    model = ours(calibrated(Attention(packed), x), x, 12)
    layers = find_layers(model)
    assert len(layers) == (2 if packed else 4)
    assert all(width(layer, -128, 127) <= 12 for layer in layers.values())


def test_5c_recurrent_gates_are_refused_by_name():
    """They stay unconstrained without a word."""
    model = nn.Sequential(qnn.QuantLSTM(8, 8))
    with pytest.raises(UnsupportedLayer, match="'0' is recurrent"):
        axe_mode(model, accumulator_bit_width=12)


@pytest.mark.parametrize("bits", [26, 30, 32])
def test_6_wide_budgets_are_exact(bits):
    """Budgets in float32 overshoot from 26 bits up."""
    torch.manual_seed(0)
    # 16-bit weights and inputs, so that even these widths bind.
    model = nn.Sequential(linear(64, 8, weight_bit_width=16, input_bit_width=16))
    x = torch.rand(128, 64)
    calibrated(model, x)
    for quality in ("fast", "best"):
        solved = ours(copy.deepcopy(model), x, bits, solver="gpfq", quality=quality)
        needed = width(solved[0], 0, 2**16 - 1)
        assert bits - 1 <= needed <= bits, "the budget is used, and kept"


def test_7_layers_have_widths_of_their_own_in_one_pass():
    """One width per call, and a second pass destroys the first."""
    torch.manual_seed(0)
    x = torch.rand(64, 48)
    model = calibrated(nn.Sequential(linear(48, 32), nn.ReLU(), linear(32, 8)), x)
    plan = Plan({"0": LayerPrecision(accumulator=11), "2": LayerPrecision(accumulator=14)})
    ours(model, x, None, plan=plan)
    assert width(model[0]) <= 11 < width(model[2]) <= 14
    before = integer_weight("0", model[0])[0]
    ours(model, x, None, plan=Plan({"2": LayerPrecision(accumulator=10)}))
    assert torch.equal(integer_weight("0", model[0])[0], before)
    assert width(model[2]) <= 10


def test_8a_a_bias_in_the_accumulator_is_counted():
    """A quantized bias preloaded in the accumulator is left out of the bound."""
    torch.manual_seed(0)
    x = torch.rand(64, 48)
    model = calibrated(nn.Sequential(linear(48, 8, bias_quant=Int16Bias)), x)
    with torch.no_grad():
        model[0].bias.fill_(100.0)
    ours(model, x, 12)
    entry = certify(model, 12, args=(x,)).entries[0]
    assert entry.width <= 12 < entry.width_with_bias


def test_8b_asymmetric_weights_are_refused_by_name():
    """They are bounded without their zero point, which hardware multiplies too."""
    torch.manual_seed(0)
    x = torch.rand(64, 48)
    model = calibrated(nn.Sequential(linear(48, 8, ShiftedUint8WeightPerTensorFloat)), x)
    with pytest.raises(UnsupportedLayer, match="'0' has asymmetric weights"):
        ours(model, x, 12)


@pytest.mark.parametrize("solver", methods("solvers"))
@pytest.mark.parametrize("quality", ["fast", "best"])
def test_9_strongly_correlated_inputs_keep_their_rows(solver, quality):
    """The float32 Cholesky loses all precision, and rows end as zeros without a word."""
    torch.manual_seed(0)
    # One common value for all inputs of a sample, ten thousand times their own deviation.
    x = torch.rand(512, 1).add(1) * torch.ones(512, 256) + 1e-4 * torch.randn(512, 256)
    model = calibrated(nn.Sequential(linear(256, 16)), x)
    reference = model[0].weight.detach() @ x.double().T.float()
    with torch.no_grad():
        solved = ours(copy.deepcopy(model), x, 20, solver=solver, quality=quality)
        integers = integer_weight("0", solved[0])[0]
        out = solved(x) - solved[0].bias
    assert integers.any(1).all(), "a row is zero"
    assert (out.T - reference).norm() < 0.1 * reference.norm()
