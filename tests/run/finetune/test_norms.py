"""Batch norms: new statistics, and folding that keeps every integer."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.errors import EmptyCalibration, UnsupportedLayer
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.quantizers import Int8WeightPerTensorFloatAXE
from brevitas_axe.proof.certificate import certify
from brevitas_axe.run.finetune import fold_batch_norms, reestimate_batch_norms
from tests.run.finetune.nets import WIDTH, all_integers, batches, conv_net, same, steps, uniform


def test_statistics_are_those_of_the_data():
    model, data = conv_net(), batches("conv")
    modes = [module.training for module in model.modules()]
    before = all_integers(model)
    reestimate_batch_norms(model, data)
    with torch.no_grad():
        outputs = torch.stack([model[0](x) for x, _ in data])
    mean, variance = outputs.mean((1, 3, 4)).mean(0), outputs.var((1, 3, 4)).mean(0)
    assert torch.allclose(model[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(model[1].running_var, variance, rtol=1e-4)
    assert model[1].momentum == 0.1
    assert modes == [module.training for module in model.modules()]
    assert same(before, all_integers(model))
    with pytest.raises(EmptyCalibration, match="no batch"):
        reestimate_batch_norms(model, [])


def test_folding_keeps_function_magnitudes_and_proof():
    model = conv_net()
    for _ in steps(model, "conv", 10):
        pass
    model[1].weight.data[::2] *= -1  # flips the sign of these channels' integers
    x = batches("conv", 1)[0][0]
    model.eval()
    before, output = all_integers(model), model(x)
    folded: Layer = fold_batch_norms(model, (x,))
    assert isinstance(folded[1], nn.Identity)
    after = all_integers(folded)
    flip = model[1].weight.sign().to(torch.int64).view(-1, 1, 1, 1)
    assert torch.equal(after["0"], before["0"] * flip)
    assert torch.allclose(folded(x), output, atol=1e-3 * float(output.detach().abs().max()))
    assert certify(folded, WIDTH, args=(x,)).ok
    assert isinstance(model[1], nn.BatchNorm2d)
    assert same(all_integers(model), before)


def test_what_cannot_be_folded_is_named():
    x = batches("conv", 1)[0][0]
    with pytest.raises(UnsupportedLayer, match="'0' cannot take a batch norm"):
        fold_batch_norms(conv_net(Int8WeightPerTensorFloatAXE), (x,))
    model = conv_net()
    apply_plan(model, uniform(model, accumulator=16), (x,), quantizer="a2q")
    with pytest.raises(UnsupportedLayer, match="'0' cannot take a batch norm"):
        fold_batch_norms(model, (x,))


def test_a_norm_beside_other_readers_is_refused():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = conv_net()
            self.conv, self.norm = inner[0], inner[1]

        def forward(self, x):
            y = self.conv(x)
            return self.norm(y) + y

    model, x = Both().eval(), batches("conv", 1)[0][0]
    with torch.no_grad():
        model.norm.running_mean.uniform_(-1, 1)
        model.norm.running_var.uniform_(2, 4)
    with pytest.raises(UnsupportedLayer, match="not the only reader"):
        fold_batch_norms(model, (x,))
