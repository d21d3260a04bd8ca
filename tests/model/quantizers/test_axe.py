"""The quantizers a user names, in every way that Brevitas users build models."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import bias_correction_mode
from brevitas.graph.quantize import (
    COMPUTE_LAYER_MAP,
    LAYERWISE_COMPUTE_LAYER_MAP,
    layerwise_quantize,
    preprocess_for_quantize,
)
from brevitas.graph.quantize import quantize as brevitas_quantize
from brevitas.quant import Int8WeightPerTensorFloat, Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe.accumulator import fits
from brevitas_axe.model.layers import find_layers, integer_weight, unroll_weight
from brevitas_axe.model.quantizers import (
    AccumulatorAware,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)
from tests.calibration import calibrated

# Brevitas's copy of the torch.fx tracer.
pytestmark = pytest.mark.filterwarnings("ignore:.treespec.children_specs:FutureWarning")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    ).eval()


def batch() -> torch.Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def assert_holds(model: nn.Module, bits: int, tile: int | None = None) -> None:
    layers = find_layers(model)
    assert layers
    for name, layer in layers.items():
        proxy = layer.weight_quant
        assert (proxy.accumulator_bit_width, proxy.accumulator_tile_size) == (bits, tile)
        rows = unroll_weight(layer, integer_weight(name, layer)[0]).flatten(0, 1)
        reach = proxy.input_range
        assert fits(rows.numpy(), reach.low, reach.high, bits, tile).all(), name
        assert rows.any()


WEIGHT = {
    "weight_quant": Int8WeightPerChannelFloatAXE,
    "weight_bit_width": 4,
    "weight_accumulator_bit_width": 14,
}


def with_ours(layer_map: dict, **more) -> dict:
    kinds = (nn.Conv2d, nn.Linear)
    return {
        kind: (entry[0], {**entry[1], **WEIGHT, **more}) if kind in kinds else entry
        for kind, entry in layer_map.items()
    }


def layerwise() -> nn.Module:
    model = layerwise_quantize(
        net(), with_ours(LAYERWISE_COMPUTE_LAYER_MAP, input_quant=Uint8ActPerTensorFloat)
    )
    return calibrated(model, batch())


def traced() -> nn.Module:
    layers = with_ours(COMPUTE_LAYER_MAP)
    model = brevitas_quantize(preprocess_for_quantize(net()), compute_layer_map=layers)
    return calibrated(model, batch())


def by_hand() -> nn.Module:
    ours = Int8WeightPerChannelFloatAXE.let(bit_width=4, accumulator_bit_width=14)
    model = nn.Sequential(
        qnn.QuantIdentity(Uint8ActPerTensorFloat, return_quant_tensor=True),
        qnn.QuantConv2d(3, 16, 3, weight_quant=ours),
        qnn.QuantReLU(return_quant_tensor=True),
        nn.Flatten(),
        qnn.QuantLinear(16 * 36, 10, weight_quant=ours),
    )
    return calibrated(model, batch())


@pytest.mark.parametrize("build", [layerwise, traced, by_hand])
def test_brevitas_models_hold_the_budget(build):
    model = build()
    assert_holds(model, 14)
    assert_holds(copy.deepcopy(model), 14)


def test_bias_correction_runs_and_changes_no_weight():
    model = layerwise()
    before = {n: integer_weight(n, layer)[0] for n, layer in find_layers(model).items()}
    biases = [layer.bias.clone() for layer in find_layers(model).values()]
    with torch.no_grad(), bias_correction_mode(model):
        model(batch())
    with torch.no_grad():
        model(batch())
    for name, layer in find_layers(model).items():
        assert torch.equal(integer_weight(name, layer)[0], before[name])
    assert any(
        not torch.equal(b, layer.bias)
        for b, layer in zip(biases, find_layers(model).values(), strict=True)
    )
    assert_holds(model, 14)


@pytest.mark.parametrize("override", ["let", "keywords", "subclass"])
def test_width_and_tile_are_overridden_in_brevitas_s_ways(override):
    class Tiled(Int8WeightPerTensorFloatAXE):
        accumulator_bit_width = 13
        accumulator_tile_size = 16

    options = {
        "let": {
            "weight_quant": Int8WeightPerTensorFloatAXE.let(
                accumulator_bit_width=13, accumulator_tile_size=16
            )
        },
        "keywords": {
            "weight_quant": Int8WeightPerTensorFloatAXE,
            "weight_accumulator_bit_width": 13,
            "weight_accumulator_tile_size": 16,
        },
        "subclass": {"weight_quant": Tiled},
    }[override]
    layer = qnn.QuantLinear(40, 8, input_quant=Uint8ActPerTensorFloat, **options)
    layer(torch.rand(3, 40))
    assert_holds(nn.Sequential(layer), 13, 16)


@pytest.mark.parametrize(
    ("quantizer", "per_channel", "power_of_two"),
    [
        (Int8WeightPerChannelFloatAXE, True, False),
        (Int8WeightPerTensorFloatAXE, False, False),
        (Int8WeightPerChannelFixedPointAXE, True, True),
        (Int8WeightPerTensorFixedPointAXE, False, True),
    ],
)
def test_the_names_say_what_they_do(quantizer, per_channel, power_of_two):
    layer = qnn.QuantLinear(40, 8, weight_quant=quantizer, input_quant=Uint8ActPerTensorFloat)
    layer(torch.rand(3, 40))
    scale = layer.quant_weight().scale
    assert scale.numel() == (8 if per_channel else 1)
    assert bool((scale.log2().frac() == 0).all()) == power_of_two
    assert layer.weight_quant.is_narrow_range
    assert int(layer.weight_quant.bit_width()) == 8


def test_the_scale_does_not_follow_the_weights():
    layer = qnn.QuantLinear(
        8, 2, weight_quant=Int8WeightPerChannelFloatAXE, input_quant=Uint8ActPerTensorFloat
    )
    layer(torch.rand(3, 8))
    before = layer.quant_weight().scale
    layer.weight.data *= 3
    assert torch.equal(layer.quant_weight().scale, before)
    assert any("scaling_impl.value" in name for name, _ in layer.named_parameters())


def test_the_mix_in_serves_any_symmetric_quantizer():
    class Wide(AccumulatorAware, Int8WeightPerTensorFloat):
        narrow_range = False
        accumulator_bit_width = 13

    layer = qnn.QuantLinear(40, 8, weight_quant=Wide, input_quant=Uint8ActPerTensorFloat)
    layer(torch.rand(3, 40))
    assert_holds(nn.Sequential(layer), 13)
