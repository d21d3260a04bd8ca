from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe import axe_gptq_mode, certify
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.quantizers import (
    Int8DynamicActPerTensorFloat,
    Int8DynamicActPerTokenFloat,
    Int8WeightPerChannelFloatAXE,
    ShiftedUint8DynamicActPerTensorFloat,
    ShiftedUint8DynamicActPerTokenFloat,
)
from brevitas_axe.model.running import observe_inputs

SIGNED = (Int8DynamicActPerTensorFloat, Int8DynamicActPerTokenFloat)
SHIFTED = (ShiftedUint8DynamicActPerTensorFloat, ShiftedUint8DynamicActPerTokenFloat)
# Brevitas says so once per forward; the layers' outputs are plain tensors anyway.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Could not compute output scale factor"),
    pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator"),
]
PER_TOKEN = (Int8DynamicActPerTokenFloat, ShiftedUint8DynamicActPerTokenFloat)


def layer(input_quant: type, bits: int = 8, inputs: int = 16) -> Layer:
    torch.manual_seed(0)
    return qnn.QuantLinear(
        inputs,
        8,
        bias=True,
        weight_quant=Int8WeightPerChannelFloatAXE,
        weight_bit_width=4,
        weight_accumulator_bit_width=None,
        input_quant=input_quant,
        input_bit_width=bits,
    ).eval()


@settings(max_examples=30, deadline=None)
@given(
    choice=st.integers(0, 3),
    bits=st.integers(2, 8),
    shift=st.floats(-50, 50),
    seed=st.integers(0, 99),
)
def test_values_stay_within_a_step(choice: int, bits: int, shift: float, seed: int) -> None:
    quant = [*SIGNED, *SHIFTED][choice]  # hypothesis cannot print an injector
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(seed)) + shift
    x[0, 0] = 0
    quantized = layer(quant, bits).input_quant(x)
    integers = quantized.int()
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if quant in SIGNED else (0, 2**bits - 1)
    assert low <= integers.min()
    assert integers.max() <= high
    # Half a step of rounding; a signed type lacks half a step at its positive end, and a zero
    # point is rounded too.
    error = (quantized.value - x).abs() / quantized.scale
    assert error.max() <= 1 + 1e-3
    points = quantized.zero_point
    assert bool((points == points.round()).all() and (points >= 0).all() and (points <= high).all())


@pytest.mark.parametrize("quant", PER_TOKEN)
def test_a_loud_token_leaves_the_others_alone(quant: type) -> None:
    x = torch.randn(1, 4, 16)
    loud = x.clone()
    loud[0, 0] *= 100
    quiet, beside = (layer(quant).input_quant(value).value[0, 1:] for value in (x, loud))
    assert torch.equal(quiet, beside)


@pytest.mark.parametrize("quant", [*SIGNED, *SHIFTED])
def test_every_zero_point_is_in_the_range(quant: type) -> None:
    """Positive calibration inputs have zero point 0; other inputs may have any."""
    module = layer(quant)
    [reach] = observe_inputs(module, {"": module}, (torch.rand(2, 16),))[""]
    assert reach is not None
    assert (reach.low, reach.high) == ((-128, 127) if quant in SIGNED else (-255, 255))


@pytest.mark.parametrize("quant", [*SIGNED, *SHIFTED])
def test_solved_layers_are_proven_for_inputs_never_seen(quant: type) -> None:
    inner: Layer = layer(quant, inputs=64)
    module = torch.nn.Sequential(inner)
    positive = torch.rand(32, 64)
    with torch.no_grad(), axe_gptq_mode(module, accumulator_bit_width=13) as axe:
        axe.model(positive)
        axe.update()
    certificate = certify(module, accumulator_bit_width=13, args=(positive,)).require()
    [entry] = certificate.entries
    assert entry.input_range == ((-128, 127) if quant in SIGNED else (-255, 255))
    with torch.no_grad():
        seen = inner.input_quant(torch.randn(500, 64) * torch.randn(500, 1).exp())
        inputs = (seen.value / seen.scale).round().to(torch.int64)
        weight = inner.quant_weight().int().to(torch.int64)
        assert (inputs @ weight.mT).abs().max() <= 2**12 - 1


def test_a_dynamic_quantizer_before_the_layer_counts_as_well() -> None:
    """The zero point reaches the layer through an operation that makes a new tensor of it."""
    inner = layer(ShiftedUint8DynamicActPerTensorFloat)
    inner.input_quant.disable_quant = True

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = qnn.QuantIdentity(
                act_quant=ShiftedUint8DynamicActPerTensorFloat, return_quant_tensor=True
            )
            self.layer = inner

        def forward(self, x):
            return self.layer(self.act(x).reshape(-1, 16))

    [entry] = certify(Model().eval(), args=(torch.rand(2, 2, 16),)).entries
    assert entry.input_range == (-255, 255)
