"""From a plain CNN to a file that the check accepts, and to the same function."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from brevitas_axe import quantize
from brevitas_axe.errors import ExportRefused
from brevitas_axe.export import check_finn, export_qonnx, prepare_for_finn
from tests.export.finn.plain import NETS, images, trained

X = images(64)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.mark.parametrize("name", NETS)
def test_a_plain_net_becomes_one_that_finn_builds(name, tmp_path):
    model = trained(name)
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_for_finn(model, [X])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    result = quantize(prepared, [X], accumulator_bit_width=14, progress=False)
    export_qonnx(result.model, X[:1], tmp_path / "m.onnx")
    assert check_finn(tmp_path / "m.onnx") == []


@pytest.mark.parametrize("name", NETS)
def test_with_many_bits_it_computes_the_same(name):
    model = trained(name)
    prepared = prepare_for_finn(model, [X], weight_bit_width=8, input_bit_width=8)
    with torch.no_grad():
        expected = model(X)
        assert (prepared(X) - expected).abs().max() < 0.05 * expected.abs().max()


def test_bits_are_those_asked_for():
    prepared = prepare_for_finn(trained("vgg"), [X], weight_bit_width=3, input_bit_width=5)
    layers: list[Any] = [m for m in prepared.modules() if hasattr(m, "weight_quant")]
    assert {int(layer.quant_weight().bit_width) for layer in layers} == {3}
    acts: list[Any] = [m.act_quant for m in prepared.modules() if hasattr(m, "act_quant")]
    assert {int(quantizer.bit_width()) for quantizer in acts} == {5, 8}


def test_what_finn_never_builds_is_named():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(), nn.Flatten(), nn.Linear(144, 10))
    with pytest.raises(ExportRefused, match="'1' is a LeakyRelu"):
        prepare_for_finn(model, [X])


class AveragedHead(nn.Module):
    """An average over the image as a method, and a dropout in front of the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.ReLU())
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(6, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.drop(self.body(x).mean((2, 3))))


def test_a_dropout_behind_an_average_does_not_stand_in_the_way():
    model = AveragedHead().eval()
    prepared = prepare_for_finn(model, [X], weight_bit_width=8, input_bit_width=8)
    assert any(isinstance(module, nn.Dropout) for module in prepared.modules())
    with torch.no_grad():
        expected = model(X)
        assert (prepared(X) - expected).abs().max() < 0.05 * expected.abs().max()
