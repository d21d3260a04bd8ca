"""What every registered quantizer of inputs promises, on a linear layer."""

from __future__ import annotations

import warnings

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant_tensor import IntQuantTensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.inputs.protocol import input_quantizer
from brevitas_axe.model.layers import input_range
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.registry import methods

X = torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(0)) + 0.5
every = pytest.mark.parametrize("name", methods("inputs"))


def layer(name: str, symmetric: bool, bits: int) -> qnn.QuantLinear:
    made = qnn.QuantLinear(
        16,
        4,
        True,
        weight_quant=Int8WeightPerChannelFloatAXE,
        input_quant=input_quantizer(methods("inputs")[name], symmetric),
        input_bit_width=bits,
    )
    with torch.no_grad(), calibration_mode(made), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas, about outputs with several scales
        made(X)
    return made.eval()


def test_all_are_there() -> None:
    assert {"static", "dynamic", "per_token", "two_region"} <= set(methods("inputs"))


@every
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_are_integers_of_the_asked_width(name, symmetric, bits) -> None:
    if not symmetric and methods("inputs")[name].asymmetric is None:
        with pytest.raises(InvalidOption, match="no zero points"):
            layer(name, symmetric, bits)
        return
    made = layer(name, symmetric, bits)
    with torch.no_grad():
        quantized = made.input_quant(X)
    assert isinstance(quantized, IntQuantTensor)
    integers = (quantized.value / quantized.scale).round().unique()
    if name == "two_region":  # a code of so many bits, for integers that need more
        assert len(integers) <= 2**bits <= 2 ** int(quantized.bit_width)
    else:
        assert int(quantized.bit_width) == bits
    found = input_range(quantized, made)
    assert found.low <= integers.min() <= integers.max() <= found.high
    assert bool(quantized.signed) == symmetric
    assert bool(quantized.zero_point.any()) != symmetric
    step = quantized.scale.expand_as(X)
    # The largest positive number has no integer of its own in two's complement.
    inside = (X - quantized.value).abs() <= step * 1.01
    # Static ranges leave out the few largest numbers.
    assert inside.float().mean() > 0.98


@every
def test_more_bits_are_closer(name) -> None:
    with torch.no_grad():
        errors = [float((layer(name, True, b).input_quant(X).value - X).square().mean())
                  for b in (3, 5, 8)]  # fmt: skip
    assert errors[0] > 4 * errors[1] > 16 * errors[2]
