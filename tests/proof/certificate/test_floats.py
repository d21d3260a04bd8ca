"""Live tensors of floating-point formats: their numbers, and what is no proof."""

from __future__ import annotations

import re

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant.float_quant_ocp import FpOCPActPerTensorFloat, FpOCPWeightPerChannelFloat
from torch import Tensor, nn

from brevitas_axe.formats import MINIFLOATS
from brevitas_axe.proof.certificate import certify
from brevitas_axe.proof.certificate.floats import integers_of, numbers_of
from brevitas_axe.proof.graph.grid import Unprovable


def widths(name: str, **more) -> dict:
    known = MINIFLOATS[name]
    return {
        "bit_width": known.bits,
        "exponent_bit_width": known.exponent,
        "mantissa_bit_width": known.mantissa,
        **more,
    }


def layer(weight: str, given: str, **more) -> qnn.QuantLinear:
    """Brevitas's own layer, without anything of ours."""
    torch.manual_seed(0)
    made = qnn.QuantLinear(
        8,
        3,
        bias=False,
        weight_quant=FpOCPWeightPerChannelFloat.let(**widths(weight)),
        input_quant=FpOCPActPerTensorFloat.let(**widths(given, **more)),
    )
    made(torch.randn(64, 8))
    return made.eval()


@pytest.mark.parametrize("weight", MINIFLOATS)
@pytest.mark.parametrize("given", MINIFLOATS)
def test_sums_are_those_of_the_integers_on_the_finest_grids(weight: str, given: str) -> None:
    made = layer(weight, given)
    certificate = certify(made, args=torch.randn(4, 8))
    [entry] = certificate.entries
    tensor = made.quant_weight()
    step = tensor.scale.double() * float(MINIFLOATS[weight].step)
    integers = (tensor.value.double() / step).round().long().tolist()
    if weight != "e5m2":  # whose integers a float32 holds only up to a rounding
        largest = MINIFLOATS[given].integers[-1]
        sums = max(sum(abs(q) * largest for q in row) for row in integers)
        assert (entry.minimum, entry.maximum) == (-sums, sums)
        assert 2 ** (entry.width - 2) - 1 < sums <= 2 ** (entry.width - 1) - 1
    assert entry.proven
    assert "fixed point" in entry.assumptions[0]
    numbers = numbers_of(tensor, "weight")
    assert (numbers.largest, numbers.step) == (
        MINIFLOATS[weight].integers[-1],
        float(MINIFLOATS[weight].step),
    )
    assert set(integers_of(tensor, numbers, "weight").flatten().tolist()) <= set(
        MINIFLOATS[weight].integers
    )


class Changed(nn.Module):
    """Changes quantized numbers, and passes them on as if they were what they had been."""

    def __init__(self, change) -> None:
        super().__init__()
        self.quantizer = qnn.QuantIdentity(
            FpOCPActPerTensorFloat.let(**widths("e2m1")), return_quant_tensor=True
        )
        weights = FpOCPWeightPerChannelFloat.let(**widths("e2m1"))
        self.layer, self.change = qnn.QuantLinear(8, 3, bias=False, weight_quant=weights), change

    def forward(self, x: Tensor) -> Tensor:
        quantized = self.quantizer(x)
        return self.layer(quantized.set(value=self.change(quantized.value)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda x: x * 1.1, "no numbers of FLOAT<2,1,1>"),
        (lambda x: x * 2, "more than the|outside its declared"),
        (lambda x: x.sin(), "no numbers of FLOAT|not followed"),
    ],
)
def test_changed_numbers_are_no_proof(change, reason: str) -> None:
    torch.manual_seed(0)
    model = Changed(change)
    model(torch.randn(64, 8))
    [entry, *_] = certify(model.eval(), args=torch.randn(4, 8)).entries
    assert not entry.proven
    assert re.search(reason, entry.reason), entry.reason


def test_a_format_that_becomes_infinite_is_no_proof() -> None:
    [entry] = certify(layer("e4m3", "e4m3", saturating=False), args=torch.randn(4, 8)).entries
    assert not entry.proven
    assert "saturating" in entry.reason


def test_other_widths_are_no_proof() -> None:
    tensor = layer("e4m3", "e4m3").quant_weight()
    wide = tensor.set(exponent_bit_width=torch.tensor(8.0))
    with pytest.raises(Unprovable, match="exponent's width is 8"):
        numbers_of(wide, "weight")
