"""Every mend removes its finding, says so, and changes no more than it promises."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFixedPoint, Uint8ActPerTensorFixedPoint
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint
from torch import Tensor, nn

from brevitas_axe.export import check_finn, export_qonnx, mend_for_finn
from tests.export.finn.cases import (
    ACCEPTED,
    REFUSED,
    TIED,
    Branches,
    Case,
    conv,
    full_range,
)
from tests.export.finn.models import build, halves_up, samples

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
WEIGHT = {"weight_quant": Int8WeightPerChannelFixedPoint, "weight_bit_width": 4}


def dyadic(signed: bool, bits: int) -> nn.Module:
    if signed:
        return qnn.QuantIdentity(Int8ActPerTensorFixedPoint, bit_width=bits)
    return qnn.QuantReLU(act_quant=Uint8ActPerTensorFixedPoint, bit_width=bits)


def layer(bias: bool = False) -> nn.Module:
    return qnn.QuantConv2d(4, 4, 3, padding=1, bias=bias, **WEIGHT)


def ends() -> list[nn.Module]:
    return [layer(True), dyadic(False, 3), nn.Flatten(), qnn.QuantLinear(144, 5, True, **WEIGHT)]


def powers_of_two() -> nn.Module:
    """Sums on a grid of powers of two, with and without a bias."""
    return nn.Sequential(dyadic(True, 4), layer(), dyadic(False, 3), *ends())


def powers_of_two_joined() -> nn.Module:
    """Ties where two branches meet: no layer stands before the quantizer."""
    grid = dyadic(True, 5)
    model = Branches(nn.Sequential(layer(), grid), grid, torch.add, dyadic(False, 3), *ends())
    model.start = nn.Sequential(dyadic(True, 4), layer(), dyadic(False, 4))
    return model


TIES = {"layers": Case(powers_of_two), "branches": Case(powers_of_two_joined)}


def rules(model: nn.Module, x: Tensor, tmp_path) -> set[str]:
    proto = export_qonnx(model, x, tmp_path / "m.onnx", target="qonnx")
    return {finding.rule for finding in check_finn(proto)}


def notes(model: nn.Module, x: Tensor, tmp_path) -> set[str]:
    proto = export_qonnx(model, x, tmp_path / "m.onnx", target="qonnx")
    return {finding.rule for finding in check_finn(proto, notes=True)}


@pytest.mark.parametrize("name", TIES)
def test_ties_are_mended_to_exactly_what_finn_computes(name, tmp_path):
    model, x = build(TIES[name]), samples(TIES[name], 256)
    assert rules(model, x[:1], tmp_path) == {"tie"}
    mended, changes = mend_for_finn(model, x[:1])
    assert {change.rule for change in changes} == {"tie"}
    assert rules(mended, x[:1], tmp_path) == set()
    # The model's input is no sum of integers: there rounding stays as it is.
    finn = halves_up(model)
    with torch.no_grad():
        # The last layer's bias is not moved, so that outputs are equal, not only close.
        assert torch.allclose(mended(x), finn(x), atol=1e-5)
        assert not torch.allclose(model(x), finn(x), atol=1e-3), "no sample met a tie"


@pytest.mark.parametrize("name", TIED)
def test_ties_up_to_float_rounding_are_mended(name, tmp_path):
    model, x = build(TIED[name]), samples(TIED[name])
    mended, changes = mend_for_finn(model, x[:1])
    assert [(change.layer, change.rule) for change in changes] == [(TIED[name].layer, "tie")]
    assert rules(mended, x[:1], tmp_path) == set()


def test_a_layer_is_mended_behind_its_batch_norm(tmp_path):
    """Channels with negative gains, one of them with a chance tie: only its bias moves."""
    case = ACCEPTED["negative gains"]
    model: Any = build(case)
    x, layer, norm = samples(case)[:1], model[1], model[2]
    with torch.no_grad():
        gain = norm.weight / (norm.running_var + norm.eps).sqrt()
        norm.running_mean[0] = layer.bias[0]
        # The quantizer's level 3 begins where the sums of channel 0 are zero.
        norm.bias[0] = 2.5 * model[3].act_quant.scale()
    assert gain[0] < 0
    proto = export_qonnx(model, x, tmp_path / "m.onnx")
    assert check_finn(proto) == []  # a coincidence
    assert [(f.layer, f.severity) for f in check_finn(proto, notes=True)] == [("1", "note")]
    mended: Any
    mended, changes = mend_for_finn(model, x)
    assert [(change.layer, change.rule) for change in changes] == [("1", "tie")]
    assert rules(mended, x, tmp_path) == set()
    assert (mended[1].bias != layer.bias).tolist() == [True, False, False, False]


@pytest.mark.parametrize("name", ["unequal branches", "unequal branches, layers in both"])
def test_branches_get_the_wider_quantizer_of_the_two(name, tmp_path):
    model, x = build(REFUSED[name]), samples(REFUSED[name])
    mended, changes = mend_for_finn(model, x[:1])
    # Chance ties come and go with the random scales.
    assert [change.rule for change in changes if change.rule != "tie"] == ["branches"]
    assert changes[0].layer in changes[0].sentence
    assert rules(mended, x[:1], tmp_path) == set()
    with torch.no_grad():
        error, size = (mended(x) - model(x)).abs().max(), model(x).abs().max()
    assert 0 < error < 0.2 * size


def test_full_range_weights_become_narrow_and_keep_their_learned_scale(tmp_path):
    learned = {"weight_scaling_impl_type": "parameter_from_stats"}
    case = Case(lambda: full_range(lambda **options: conv(**learned, **options)))
    model, x = build(case), samples(case)
    model[1].weight_quant.tensor_quant.scaling_impl.value.data *= 0.9
    assert notes(model, x[:1], tmp_path) == {"full_range"}
    mended: Any
    mended, changes = mend_for_finn(model, x[:1])
    assert [(change.layer, change.rule) for change in changes] == [("1", "full_range")]
    assert notes(mended, x[:1], tmp_path) == set()
    integers = mended[1].quant_weight().int(float_datatype=False)
    assert integers.min() == -7
    # A scale is a threshold over the largest integer: 8 of full range, 7 of narrow.
    before, after = model[1].quant_weight().scale, mended[1].quant_weight().scale
    assert torch.allclose(after, before * 8 / 7)


def test_a_model_that_finn_builds_stays_as_it_is():
    model, x = build(ACCEPTED["residual"]), samples(ACCEPTED["residual"])
    before = copy.deepcopy(model.state_dict())
    mended, changes = mend_for_finn(model, x[:1])
    assert changes == []
    assert mended is not model
    assert all(torch.equal(value, before[name]) for name, value in mended.state_dict().items())


def test_what_cannot_be_mended_stays_for_the_check(tmp_path):
    case = REFUSED["leaky ReLU"]
    model, x = build(case), samples(case)[:1]
    mended, changes = mend_for_finn(model, x)
    assert all(change.rule == "tie" for change in changes)
    assert rules(mended, x, tmp_path) == {"operator"}
