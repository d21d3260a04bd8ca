"""A live model and its file get the same certificate: random models of one layer, and a net."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.live_against_file import KINDS, disagreements
from benchmarks.trained_nets import resnet8
from brevitas_axe.export import export_qonnx
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.proof.certificate import certify, certify_file


@pytest.mark.parametrize("kind", KINDS)
def test_both_say_the_same(kind, tmp_path) -> None:
    for index in range(3):
        assert disagreements(np.random.default_rng([11, index]), kind, tmp_path) == []


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_both_say_the_same_of_a_residual_net(tmp_path) -> None:
    torch.manual_seed(0)
    weights = {
        "weight_quant": Int8WeightPerChannelFloatAXE,
        "weight_bit_width": 4,
        "weight_accumulator_bit_width": 16,
    }
    model, x = resnet8(weights), torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model(x)
        live = certify(model.eval(), 16, args=x[:1])
    export_qonnx(model, x[:1], tmp_path / "model.onnx", target="qonnx")
    file = certify_file(tmp_path / "model.onnx", 16)
    claims = [
        {e.layer: (e.minimum, e.maximum, e.width, e.proven) for e in side.entries}
        for side in (live, file)
    ]
    assert claims[0] == claims[1]
    assert len(claims[0]) == 10
    assert live.ok
