"""A plan becomes quantizers; solved integers are stored so that the layer computes with them."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint
from brevitas.quant.scaled_int import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
)
from torch import nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption, InvalidPlan, InvalidTile, NotProven, UnsupportedLayer
from brevitas_axe.model.apply.weight_bits import set_weight_bits
from brevitas_axe.model.apply.weights import (
    apply_plan,
    apply_precision,
    current_scale,
    is_power_of_two,
    is_shared_scale,
    write_solution,
)
from brevitas_axe.model.layers import Layer, integer_weight, unroll_weight
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.quantizers.a2q import a2q_granularity, a2q_kind, a2q_scale
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import certify

QUANTIZERS = [
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Int8WeightPerChannelFixedPoint,
    Int8WeightPerTensorFixedPoint,
]


def model(
    weight: Layer = Int8WeightPerChannelFloat, act: Layer = Uint8ActPerTensorFloat, **options
) -> Layer:
    torch.manual_seed(0)
    result = nn.Sequential(
        qnn.QuantLinear(20, 6, weight_quant=weight, weight_bit_width=4, input_quant=act, **options)
    )
    if act is not None:
        result[0].input_quant(torch.rand(8, 20))
    return result.eval()


def plan(**precision) -> Plan:
    return Plan({"0": LayerPrecision(**precision)})


@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_an_unbounded_plan_changes_no_integer(quantizer):
    layers = model(quantizer)
    before, scale = integer_weight("0", layers[0])
    apply_plan(layers, plan())
    after, new_scale = integer_weight("0", layers[0])
    assert isinstance(layers[0].weight_quant, AccumulatorAwareWeightQuantProxy)
    assert torch.equal(before, after)
    assert torch.allclose(scale, new_scale, rtol=1e-6)
    assert is_shared_scale(layers[0]) == (scale.numel() == 1)
    assert is_power_of_two(layers[0]) == ("FixedPoint" in quantizer.__name__)
    assert torch.allclose(current_scale(layers[0]).flatten(), new_scale.flatten().expand(6))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weight_bits_change_and_the_scale_follows(quantizer, bits):
    layers = apply_plan(model(quantizer), plan(weight=bits))
    integers, _ = integer_weight("0", layers[0])
    top = 2 ** (bits - 1) - 1
    assert int(layers[0].weight_quant.bit_width()) == bits
    assert int(integers.abs().max()) <= top
    assert int(integers.abs().max()) > top // 2
    error = (layers[0].quant_weight().value - layers[0].weight).abs().max()
    assert error <= layers[0].quant_weight().scale.max() * (
        1.01 if "Fixed" in str(quantizer) else 0.51
    )


def test_input_bits_change_and_with_them_the_range():
    layers: Layer = apply_plan(model(), plan(accumulator=12))
    layers(torch.rand(2, 20))
    assert layers[0].weight_quant.input_range == InputRange(0, 255)
    apply_plan(layers, plan(accumulator=12, input=3))
    layers(torch.rand(2, 20))
    assert layers[0].weight_quant.input_range == InputRange(0, 7)


def test_a_plan_can_be_applied_again():
    layers: Layer = apply_plan(model(), plan(accumulator=10, tile=5))
    proxy = layers[0].weight_quant
    apply_plan(layers, plan(accumulator=12))
    assert layers[0].weight_quant is proxy
    assert (proxy.accumulator_bit_width, proxy.accumulator_tile_size) == (12, None)


def test_training_mode_is_kept():
    layers = model().train()
    layers.eval()
    layers[0].train()
    apply_plan(layers, plan())
    assert layers[0].training
    assert not layers.training
    assert layers[0].weight_quant.training


@pytest.mark.parametrize(
    "quantizer", [Int8AccumulatorAwareWeightQuant, Int8AccumulatorAwareZeroCenterWeightQuant]
)
def test_a2q_layers_keep_the_integers_they_compute_with(quantizer):
    layers, x = model(quantizer, weight_accumulator_bit_width=12), torch.rand(3, 20)
    expected = layers(x)
    with pytest.raises(InvalidOption, match=r"'0' has an A2Q quantizer.*args"):
        apply_plan(layers, plan(accumulator=12))
    apply_plan(layers, plan(accumulator=12), args=(x,))
    assert isinstance(layers[0].weight_quant, AccumulatorAwareWeightQuantProxy)
    assert torch.allclose(layers(x), expected, atol=1e-6)


def test_what_does_not_fit_the_model_is_named():
    with pytest.raises(InvalidPlan, match="does not have: nope; its layers are: 0"):
        apply_plan(model(), Plan({"nope": LayerPrecision()}))
    with pytest.raises(InvalidTile, match="tile 21 is larger than the 20 inputs of layer '0'"):
        apply_plan(model(), plan(accumulator=12, tile=21))
    with pytest.raises(InvalidPlan, match="'0' takes its input from another"):
        apply_plan(model(act=None), plan(input=4))
    with pytest.raises(InvalidPlan, match="does not have: 0"):
        apply_plan(model(), plan(), exclude=("0",))


def test_asymmetric_weights_are_refused_by_name():
    with pytest.raises(UnsupportedLayer, match="'0' has asymmetric weights"):
        apply_plan(model(ShiftedUint8WeightPerTensorFloat), plan(accumulator=12))


def test_a_shared_weight_quantizer_is_refused_by_name():
    first: Layer = qnn.QuantLinear(4, 4, weight_quant=Int8WeightPerTensorFloat)
    layers = nn.Sequential(first, qnn.QuantLinear(4, 4, weight_quant=first.weight_quant))
    with pytest.raises(UnsupportedLayer, match="'1' shares its weight quantizer"):
        apply_plan(layers, Plan({"1": LayerPrecision()}))


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_written_integers_come_back(quantizer, dtype):
    layer = model(quantizer, bias=True).to(dtype)[0]
    apply_precision("0", layer, LayerPrecision(weight=8, accumulator=32))
    layer.weight_quant.set_input_range(InputRange(0, 255))
    generator = torch.Generator().manual_seed(0)
    shape = unroll_weight(layer, layer.weight).shape
    integers = torch.randint(-127, 128, shape, generator=generator, dtype=torch.int32)
    scale = torch.rand(1, 6, generator=generator) * 0.1 + 1e-3
    if is_shared_scale(layer):
        scale = scale[:, :1].expand(1, 6)
    if is_power_of_two(layer):
        scale = scale.log2().round().exp2()
    bias, shift = layer.bias.detach().clone(), torch.ones(1, 6)
    write_solution("0", layer, integers, scale, shift)
    stored, stored_scale = integer_weight("0", layer)
    assert torch.equal(stored, integers[0].long())
    assert torch.allclose(stored_scale.flatten().expand(6).double(), scale[0].double(), rtol=1e-2)
    assert torch.allclose(layer.bias, bias + 1)


def test_integers_that_the_quantizer_cannot_hold_are_not_proven():
    layer = model()[0]
    apply_precision("0", layer, LayerPrecision(accumulator=32))
    layer.weight_quant.set_input_range(InputRange(0, 255))
    too_large = torch.full((1, 6, 20), 9, dtype=torch.int32)  # 4-bit weights
    with pytest.raises(NotProven, match="'0' does not reproduce"):
        write_solution("0", layer, too_large, torch.ones(1, 6), None)
    layer.weight_quant.accumulator_bit_width = 8
    too_many = torch.full((1, 6, 20), 7, dtype=torch.int32)
    with pytest.raises(NotProven, match="'0' does not reproduce"):
        write_solution("0", layer, too_many, torch.ones(1, 6), None)


def widths(net, accumulator) -> list[int]:
    found = certify(net, accumulator_bit_width=accumulator, args=(torch.rand(2, 20),)).require()
    return [entry.width or 0 for entry in found.judged]


@pytest.mark.parametrize("kind", ["a2q", "a2q+"])
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_a2q_takes_over_scale_granularity_and_widths(kind, quantizer):
    net = model(quantizer)
    weight = net[0].weight
    before, scale = weight.detach().clone(), net[0].weight_quant.scale().detach()
    apply_plan(net, plan(accumulator=13), args=(torch.rand(2, 20),), quantizer=kind)
    assert a2q_kind(net[0]) == kind
    assert net[0].weight is weight
    assert torch.equal(weight, before)
    assert torch.allclose(a2q_scale(net[0]), scale.view_as(a2q_scale(net[0])))
    assert a2q_granularity(net[0]) == (scale.numel() == 1, "FixedPoint" in quantizer.__name__)
    assert max(widths(net, 13)) <= 13


def test_a2q_keeps_the_input_that_its_bound_follows_when_its_bits_change():
    net, x = model(), torch.rand(2, 20)
    apply_plan(net, plan(accumulator=13), args=(x,), quantizer="a2q")
    proxy = net[0].weight_quant
    proxy.cache_inference_quant_act = True
    net(x)
    kept = proxy._cached_act
    assert kept is not None
    assert set_weight_bits(proxy, 3)
    assert proxy._cached_act is kept


def test_every_layer_has_a_width_of_its_own_and_quantizers_can_be_changed():
    net, x = nn.Sequential(*(model()[0] for _ in range(3))), (torch.rand(2, 20),)
    net[1], net[2] = (qnn.QuantLinear(6, 6, weight_bit_width=4, input_quant=Uint8ActPerTensorFloat)
                      for _ in range(2))  # fmt: skip
    with calibration_mode(net):
        net.eval()(*x)
    chosen = {"0": 12, "1": 14, "2": 16}
    each = Plan({name: LayerPrecision(accumulator=p) for name, p in chosen.items()})
    for kind in ("a2q", "a2q+", "axe", "a2q"):
        apply_plan(net, each, args=x, quantizer=kind)
        found = certify(net, plan=each, args=x).require()
        assert all((entry.width or 0) <= chosen[entry.name] for entry in found.judged)


def test_a2q_bits_change_and_the_scale_follows():
    net, x = model(), (torch.rand(2, 20),)
    apply_plan(net, plan(accumulator=16), args=x, quantizer="a2q")
    scale = a2q_scale(net[0])
    apply_plan(net, plan(accumulator=16, weight=6), args=x, quantizer="a2q")
    assert torch.allclose(a2q_scale(net[0]), scale * 7 / 31)
    assert int(net[0].weight_quant.bit_width().max()) == 6


def test_what_a2q_cannot_do_is_said():
    with pytest.raises(InvalidOption, match="a2q\\+"):
        apply_plan(model(), plan(accumulator=16), quantizer="a3q")
    with pytest.raises(InvalidOption, match="args="):
        apply_plan(model(), plan(accumulator=16), quantizer="a2q")
    tiles = plan(accumulator=16, tile=4)
    with pytest.raises(InvalidPlan, match="tiles, but A2Q"):
        apply_plan(model(), tiles, args=(torch.rand(2, 20),), quantizer="a2q")


@pytest.mark.parametrize("quantizer", ["axe", "a2q+"])
def test_a_plan_may_change_between_two_steps(quantizer):
    net, x = model(), torch.rand(8, 20)
    apply_plan(net, plan(accumulator=16), args=(x,), quantizer=quantizer)
    parameters = list(net.parameters())
    optimizer = torch.optim.Adam(parameters, 0.05)
    for changed in ({"accumulator": 13}, {"accumulator": 12, "weight": 3}, {"accumulator": 16}):
        before = net[0].weight.detach().clone()
        apply_plan(net, plan(**changed), args=(x,), quantizer=quantizer)
        assert torch.equal(net[0].weight, before)
        assert all(one is other for one, other in zip(parameters, net.parameters(), strict=True))
        assert max(widths(net, changed["accumulator"])) <= changed["accumulator"]
        optimizer.zero_grad()
        net.train()(x).square().sum().backward()
        optimizer.step()
        assert not torch.equal(net[0].weight, before)
        assert max(widths(net.eval(), changed["accumulator"])) <= changed["accumulator"]
