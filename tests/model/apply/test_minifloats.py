"""Brevitas's quantizers of floating-point formats in place of integers."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.proxy import ActFloatQuantProxyFromInjector
from brevitas.quant import Int8WeightPerChannelFloat
from brevitas.quant.float_quant_ocp import FpOCPWeightPerChannelFloat
from torch import nn

from brevitas_axe.errors import InvalidPlan, UnsupportedLayer
from brevitas_axe.formats import MINIFLOATS, minifloat
from brevitas_axe.model.apply.activations import activation_quantizers, set_input_bits
from brevitas_axe.model.apply.minifloats import set_unit, unit, weight_format
from brevitas_axe.model.apply.weights import apply_plan, current_scale, write_solution
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.quantizers import (
    Int8DynamicActPerTensorFloat,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.plan import LayerPrecision, Plan
from tests.model.apply.test_activations import Fork
from tests.model.test_prepare import X


@pytest.fixture
def fork() -> nn.Module:
    torch.manual_seed(0)
    return to_brevitas(Fork().eval(), as_batches([X]))


def layer(quantizer=Int8WeightPerChannelFloat) -> qnn.QuantLinear:
    torch.manual_seed(0)
    return qnn.QuantLinear(6, 4, bias=True, weight_quant=quantizer).eval()


@pytest.mark.parametrize("format", MINIFLOATS)
def test_weights_are_those_of_brevitass_quantizer(format: str) -> None:
    known = minifloat(format)
    theirs = FpOCPWeightPerChannelFloat.let(
        bit_width=known.bits, exponent_bit_width=known.exponent, mantissa_bit_width=known.mantissa
    )
    model, expected = nn.Sequential(layer()), layer(theirs)
    apply_plan(model, Plan({"0": LayerPrecision(weight=format)}))
    assert weight_format(model[0]) == format
    torch.testing.assert_close(model[0].quant_weight().value, expected.quant_weight().value)
    integers, size = integer_weight("0", model[0])
    assert set(integers.flatten().tolist()) <= set(known.integers)
    torch.testing.assert_close((integers * size).float(), model[0].quant_weight().value)


@pytest.mark.parametrize(
    "quantizer",
    [Int8WeightPerChannelFloat, Int8WeightPerTensorFloatAXE, Int8WeightPerChannelFixedPointAXE],
)
def test_solved_numbers_are_read_back_at_scales_of_the_same_kind(quantizer) -> None:
    model = nn.Sequential(layer(quantizer))
    apply_plan(model, Plan({"0": LayerPrecision(weight="e5m2")}))
    before, scale = unit(model[0]), current_scale(model[0])
    assert scale.shape == (1, 4)
    wanted = before * 0.25
    torch.testing.assert_close(set_unit(model[0], wanted), wanted)
    if quantizer is Int8WeightPerChannelFixedPointAXE:
        assert torch.equal(before.log2(), before.log2().round())
    known = torch.tensor(MINIFLOATS["e5m2"].integers)
    integers = known[torch.randint(len(known), (1, 4, 6))]
    write_solution("0", model[0], integers, scale * 0.25, None)
    assert torch.equal(integer_weight("0", model[0])[0].unsqueeze(0), integers)


def test_inputs_of_all_readers_of_a_quantizer_become_floats(fork) -> None:
    x, before = (X[:1],), len(activation_quantizers(fork))
    plan = Plan({"left": LayerPrecision(4, "e4m3"), "right": LayerPrecision(4, "e4m3")})
    set_input_bits(fork, plan, x)
    seen = observe_inputs(fork, find_layers(fork), x)
    assert seen["left"] == seen["right"] == [minifloat("e4m3").input_range]
    assert seen["stem"] != seen["left"]
    assert len(activation_quantizers(fork)) == before - 1
    [found] = [m for m in fork.modules() if isinstance(m, ActFloatQuantProxyFromInjector)]
    largest = found.scale() * 448
    kept = copy_of_range()
    torch.testing.assert_close(largest, kept)
    set_input_bits(fork, plan, x)  # a second time changes nothing
    assert found in list(fork.modules())


def copy_of_range() -> torch.Tensor:
    """The largest number that the integer quantizer in front of both layers was calibrated for."""
    torch.manual_seed(0)
    model = to_brevitas(Fork().eval(), as_batches([X]))
    [proxy] = [
        proxies[0]
        for proxies in activation_quantizers(model).values()
        if not proxies[0].is_signed
        and proxies[0].bit_width() == 8
        and isinstance(proxies[0].fused_activation_quant_proxy.activation_impl, nn.ReLU)
    ]
    return proxy.scale() * 255


def test_two_formats_of_one_quantizer_are_refused(fork) -> None:
    plan = Plan({"left": LayerPrecision(4, "e4m3"), "right": LayerPrecision(4, 8)})
    with pytest.raises(InvalidPlan, match=r"'left' and 'right' read the same .* e4m3 and 8"):
        set_input_bits(fork, plan, (X[:1],))


def test_what_cannot_be_given_is_refused_by_the_layers_name() -> None:
    model = nn.Sequential(layer())
    with pytest.raises(InvalidPlan, match="'0' is planned with inputs in e2m1, but none arrive"):
        apply_plan(model, Plan({"0": LayerPrecision(input="e2m1")}))
    apply_plan(model, Plan({"0": LayerPrecision(weight="e2m1")}))
    with pytest.raises(InvalidPlan, match="'0' has floating-point weights, and its plan wants"):
        apply_plan(model, Plan({"0": LayerPrecision(weight=4)}))
    dynamic = nn.Sequential(
        qnn.QuantLinear(6, 4, bias=True, input_quant=Int8DynamicActPerTensorFloat)
    ).eval()
    with pytest.raises(UnsupportedLayer, match=r"'0.input_quant' is a .*cannot become .* e2m1"):
        set_input_bits(dynamic, Plan({"0": LayerPrecision(input="e2m1")}), (torch.randn(2, 6),))
    theirs = FpOCPWeightPerChannelFloat.let(bit_width=8, exponent_bit_width=4, mantissa_bit_width=3)
    with pytest.raises(UnsupportedLayer, match="'0' has floating-point weights of its own"):
        apply_plan(nn.Sequential(layer(theirs)), Plan({"0": LayerPrecision(weight=4)}))
