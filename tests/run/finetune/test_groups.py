"""Learning rates follow the scales."""

from __future__ import annotations

import pytest
import torch
from brevitas.quant import Int8WeightPerChannelFloat

from brevitas_axe.model.apply.weights import apply_plan, current_scale
from brevitas_axe.model.quantizers import Int8WeightPerChannelFixedPointAXE
from brevitas_axe.run.finetune import parameter_groups
from tests.run.finetune.nets import batches, conv_net, uniform


@pytest.mark.parametrize("quantizer", ["axe", "a2q", "a2q+"])
def test_every_parameter_is_in_one_group(quantizer):
    model = conv_net()
    x = batches("conv", 1)[0][0]
    apply_plan(model, uniform(model, accumulator=16), (x,), quantizer=quantizer)
    groups = parameter_groups(model, 1e-3)
    found = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(id(parameter) for parameter in model.parameters())
    torch.optim.AdamW(groups)


def test_rates_are_relative_to_the_scale():
    model = conv_net()
    rates = {id(g["params"][0]): g["lr"] for g in parameter_groups(model, 1e-3, 1e-4)}
    assert rates[id(model[1].weight)] == 1e-3
    scale = float(current_scale(model[0]).mean())
    assert rates[id(model[0].weight)] == pytest.approx(1e-2 * scale)
    value = model[0].weight_quant.tensor_quant.scaling_impl.value
    assert rates[id(value)] == pytest.approx(1e-4 * float(value.detach().abs().mean()))


def test_logarithmic_scales_and_other_quantizers_are_understood():
    model = conv_net(Int8WeightPerChannelFixedPointAXE)
    value = model[0].weight_quant.tensor_quant.scaling_impl.value
    rates = {id(g["params"][0]): g["lr"] for g in parameter_groups(model, 1e-3)}
    assert rates[id(value)] == pytest.approx(1e-2)
    assert parameter_groups(conv_net(Int8WeightPerChannelFloat), 1e-3)
