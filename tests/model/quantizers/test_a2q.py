"""Brevitas's A2Q and A2Q+ on layers that exist, against the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat

from brevitas_axe.accumulator import a2q_l1_bound, a2q_plus_l1_bound
from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.model.layers import Layer, integer_weight
from brevitas_axe.model.quantizers.a2q import (
    a2q_granularity,
    a2q_kind,
    a2q_norm,
    a2q_scale,
    build_a2q,
    clip_a2q_norm,
    set_a2q_scale,
)

KINDS = ["a2q", "a2q+"]


def layer(kind, bits=16, shared=False, power_of_two=False, act=Uint8ActPerTensorFloat) -> Layer:
    torch.manual_seed(0)
    result: Layer = qnn.QuantLinear(40, 6, bias=False, input_quant=act)
    x = torch.rand(8, 40)
    result.input_quant(x)
    scale = torch.tensor(0.25) if shared else 2.0 ** torch.arange(-6, 0).view(6, 1)
    build_a2q(result, kind, 4, scale, shared, power_of_two)
    result.weight_quant.tensor_quant.pre_scaling_impl.accumulator_bit_width.bit_width.fill_(bits)
    result.weight_quant.cache_inference_quant_act = True
    result.eval()(x)
    return result


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("power_of_two", [False, True])
def test_a_layer_gets_what_was_asked_for(kind, shared, power_of_two):
    built = layer(kind, shared=shared, power_of_two=power_of_two)
    assert a2q_kind(built) == kind
    assert a2q_granularity(built) == (shared, power_of_two)
    expected = torch.tensor(0.25) if shared else 2.0 ** torch.arange(-6, 0).view(6, 1)
    assert torch.allclose(a2q_scale(built), expected)
    set_a2q_scale(built, 2 * expected)
    assert torch.allclose(a2q_scale(built), 2 * expected)
    assert int(built.weight_quant.bit_width().max()) == 4


@pytest.mark.parametrize("bits", [10, 12, 16, 20])
@pytest.mark.parametrize("act", [Uint8ActPerTensorFloat, Int8ActPerTensorFloat])
def test_integers_obey_the_bounds_of_the_papers(bits, act):
    signed = act is Int8ActPerTensorFloat
    for kind, bound in (
        ("a2q", a2q_l1_bound(bits, 8, signed)),
        ("a2q+", a2q_plus_l1_bound(bits, 8)),
    ):
        built = layer(kind, bits, act=act)
        norms = np.abs(integer_weight("layer", built)[0].numpy()).sum(1)
        assert (norms <= float(bound)).all()


@pytest.mark.parametrize(("kind", "bound"), [
    ("a2q", a2q_l1_bound(14, 8, False)), ("a2q+", a2q_plus_l1_bound(14, 8)),
])  # fmt: skip
def test_the_norm_is_bounded_by_the_scale_times_the_papers_bound(kind, bound):
    found = a2q_norm("layer", layer(kind, 14))
    scale = 2.0 ** torch.arange(-6, 0).view(6, 1)
    assert torch.allclose(found.bound, scale * float(bound), rtol=1e-3)
    assert found.centred == (kind == "a2q+")


@pytest.mark.parametrize("kind", KINDS)
def test_only_norms_above_their_bound_are_cut(kind):
    built = layer(kind, 12)
    before = a2q_norm("layer", built)
    clip_a2q_norm("layer", built)
    after = a2q_norm("layer", built)
    over = before.norm > before.bound
    assert over.any()
    assert not over.all()
    assert torch.allclose(after.norm[over], before.bound[over])
    assert torch.allclose(after.norm[~over], before.norm[~over])


def test_an_input_has_to_come_first():
    built: Layer = qnn.QuantLinear(40, 6, bias=False)
    build_a2q(built, "a2q", 4, torch.tensor(0.25), True, False)
    with pytest.raises(MissingInputQuantizer, match="'fc'"):
        a2q_norm("fc", built)
    assert a2q_kind(qnn.QuantLinear(40, 6)) is None
