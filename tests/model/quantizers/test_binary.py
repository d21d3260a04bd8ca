"""Weights of one bit: two levels, from and to other widths, and what accumulators hold."""

from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat

from brevitas_axe import Int8WeightPerChannelFloatAXE
from brevitas_axe.errors import AccumulatorTooNarrow
from brevitas_axe.model.apply.weight_bits import is_binary, set_weight_bits
from brevitas_axe.model.layers import integer_weight
from brevitas_axe.proof.certificate import certify


def layer(accumulator: int | None = None) -> qnn.QuantLinear:
    torch.manual_seed(0)
    made = qnn.QuantLinear(
        16, 4, bias=False, weight_quant=Int8WeightPerChannelFloatAXE, weight_bit_width=4,
        weight_accumulator_bit_width=accumulator, input_quant=Int8ActPerTensorFloat,
    )  # fmt: skip
    made(torch.randn(8, 16))
    return made.eval()


def test_one_bit_is_two_levels_and_more_bits_are_levels_around_zero_again() -> None:
    linear = layer()
    linear.weight.data[0, 0] = 0
    before = integer_weight("fc", linear)[0]
    assert not is_binary(linear)
    assert set_weight_bits(linear.weight_quant, 1)
    assert not set_weight_bits(linear.weight_quant, 1)
    assert is_binary(linear)
    integers, _ = integer_weight("fc", linear)
    assert torch.equal(integers, torch.where(linear.weight < 0, -1, 1))
    assert linear.quant_weight().bit_width == 1
    set_weight_bits(linear.weight_quant, 4)
    assert not is_binary(linear)
    assert torch.equal(integer_weight("fc", linear)[0], before)


def test_the_certificate_counts_every_sign() -> None:
    linear = layer(accumulator=13)
    set_weight_bits(linear.weight_quant, 1)
    x = torch.randn(8, 16)
    certificate = certify(linear, args=(x,))
    assert certificate.ok
    [entry] = certificate.entries
    assert entry.width == 12  # 16 inputs of magnitudes up to 128, of both signs
    linear.weight_quant.accumulator_bit_width = 11
    with pytest.raises(AccumulatorTooNarrow, match="16 of them do not fit an accumulator of 11"):
        linear(x)


def test_gradients_pass_the_sign() -> None:
    linear = layer(accumulator=16).train()
    set_weight_bits(linear.weight_quant, 1)
    linear(torch.randn(8, 16)).sum().backward()
    assert linear.weight.grad is not None
    assert (linear.weight.grad != 0).any()
