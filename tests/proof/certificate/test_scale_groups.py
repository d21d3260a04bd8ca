"""Weights with a scale per group of inputs: every tile inside one group is proven, no other."""

from __future__ import annotations

from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.inject.enum import ScalingPerOutputType
from brevitas.proxy.groupwise_int_parameter_quant import GroupwiseWeightQuantProxyFromInjector
from brevitas.quant import Int8WeightPerChannelFloat, Uint8ActPerTensorFloat

from brevitas_axe.proof.certificate import certify

GROUP, INPUTS = 8, 20  # the last group is short


class Groupwise(Int8WeightPerChannelFloat):
    proxy_class = GroupwiseWeightQuantProxyFromInjector
    scaling_per_output_type = ScalingPerOutputType.GROUP
    group_size = GROUP
    bit_width = 4


def layer() -> tuple[torch.nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    quantizers = {"weight_quant": Groupwise, "input_quant": Uint8ActPerTensorFloat}
    model = torch.nn.Sequential(qnn.QuantLinear(INPUTS, 5, **quantizers))
    x = torch.rand(3, INPUTS)
    with torch.no_grad():
        model(x)
    model.eval()
    return model, x


@pytest.mark.parametrize("tile", [8, 4])
def test_tiles_inside_a_group_are_proven(tile: int) -> None:
    model, x = layer()
    [entry] = certify(model, tile_size=tile, args=x).entries
    weight: Any = model.get_submodule("0")
    weight = weight.quant_weight()
    q = np.rint((weight.value / weight.scale).detach().double().numpy()).astype(np.int64)
    sums = [q[:, k : k + tile] for k in range(0, INPUTS, tile)]
    assert entry.proven
    assert entry.maximum == max(255 * s.clip(min=0).sum(1).max() for s in sums)
    assert entry.minimum == min(255 * s.clip(max=0).sum(1).min() for s in sums)
    assert (entry.outer_width, entry.outer_bound, entry.width_with_bias) == (None, None, None)
    assert any("no integer accumulator" in note for note in entry.assumptions)


@pytest.mark.parametrize("tile", [None, 3, 16, INPUTS])
def test_tiles_across_groups_are_not(tile: int | None) -> None:
    model, x = layer()
    [entry] = certify(model, tile_size=tile, args=x).entries
    assert not entry.proven
    assert "one scale per 8 inputs" in entry.reason
    assert "give tiles of 8" in entry.reason
