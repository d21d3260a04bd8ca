"""Penalty and start: float rows against their budgets."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from brevitas_examples.imagenet_classification.a2q.ep_init import (
    euclidean_projection_onto_l1_ball,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.accumulator import a2q_l1_bound, a2q_plus_l1_bound
from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.model.apply.weights import apply_plan, current_scale, is_power_of_two, set_scale
from brevitas_axe.model.l1_ball import project_on_ball
from brevitas_axe.model.layers import find_layers, integer_weight, unroll_weight
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)
from brevitas_axe.run.finetune import accumulator_penalty, ep_init
from brevitas_axe.run.quantize import quantize
from tests.run.finetune.nets import NETS, all_integers, batches, conv_net, same, uniform

AXE = [
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFloatAXE,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerTensorFixedPointAXE,
]


def sample(kind: str) -> torch.Tensor:
    return batches(kind, 1)[0][0]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.floats(0.01, 20), st.integers(0, 999))
def test_projection_is_brevitas_s_reference(columns, radius, seed):
    row = torch.randn(columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = euclidean_projection_onto_l1_ball(row.clone(), radius)
    found = project_on_ball(row.unsqueeze(0), torch.tensor([[radius]], dtype=torch.float64))[0]
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("kind", NETS)
def test_the_penalty_counts_what_is_over_and_only_that(kind):
    model = NETS[kind]()
    assert accumulator_penalty(model).item() > 0
    for layer in find_layers(model).values():
        layer.weight_quant.accumulator_bit_width = 32
    assert accumulator_penalty(model).item() == 0


def test_the_penalty_is_the_l1_excess_of_each_side():
    model = conv_net()
    expected = 0.0
    for layer in find_layers(model).values():
        rows = unroll_weight(layer, layer.weight.detach()).flatten(0, 1).double()
        room = 2047 / 255 * current_scale(layer).flatten().double()
        for side in (rows.clamp(min=0), -rows.clamp(max=0)):
            expected += (side.sum(1) - room).clamp(min=0).sum().item()
    assert accumulator_penalty(model).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("quantizer", ["axe", "a2q", "a2q+"])
def test_following_the_penalty_alone_ends_inside(quantizer):
    model = conv_net()
    apply_plan(model, uniform(model, accumulator=14), (sample("conv"),), quantizer=quantizer)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    start = accumulator_penalty(model).item()
    for _ in range(150):
        optimizer.zero_grad()
        accumulator_penalty(model).backward()
        optimizer.step()
    assert accumulator_penalty(model).item() < 0.05 * start


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("quantizer", ["a2q", "a2q+"])
def test_ep_init_starts_a2q_inside(kind, quantizer):
    model, x = NETS[kind](), sample(kind)
    apply_plan(model, uniform(model, accumulator=14), (x,), quantizer=quantizer)
    assert accumulator_penalty(model).item() > 0
    ep_init(model, (x,))
    assert accumulator_penalty(model).item() == pytest.approx(0, abs=1e-4)


def errors(model: torch.nn.Module) -> torch.Tensor:
    """Squared distance of all weights to what is computed with, per layer."""
    layers = find_layers(model).values()
    return torch.stack(
        [(layer.quant_weight().value - layer.weight).square().sum().detach() for layer in layers]
    )


@pytest.mark.parametrize("kind", NETS)
@pytest.mark.parametrize("quantizer", AXE)
def test_ep_init_finds_our_scales_and_keeps_the_weights(kind, quantizer):
    model, x = NETS[kind](quantizer), sample(kind)
    weights = {name: layer.weight.detach().clone() for name, layer in find_layers(model).items()}
    scales = {name: current_scale(layer) for name, layer in find_layers(model).items()}
    start = errors(model)
    ep_init(model, (x,))
    found = errors(model)
    assert (found < start).any()
    for name, layer in find_layers(model).items():
        assert torch.equal(layer.weight, weights[name])
        if is_power_of_two(layer):
            octaves = current_scale(layer).log2()
            assert torch.equal(octaves, octaves.round())
    for factor in (0.5, 1.0, 2.0, 4.0, 8.0):  # nothing on the grid is better
        for name, layer in find_layers(model).items():
            shape = layer.weight_quant.tensor_quant.scaling_impl.value.shape
            set_scale(layer, (factor * scales[name]).flatten()[: shape.numel()].view(shape))
        assert (found <= errors(model) * (1 + 1e-5)).all()


def test_ep_init_changes_nothing_that_is_inside():
    solved = quantize(conv_net(), [sample("conv")], accumulator_bit_width=12, progress=False).model
    before = all_integers(solved)
    weights = copy.deepcopy(solved.state_dict())
    ep_init(solved, (sample("conv"),))
    assert same(all_integers(solved), before)
    assert all(torch.equal(weights[key], value) for key, value in solved.state_dict().items())


@pytest.mark.parametrize(("quantizer", "centred"), [("a2q", False), ("a2q+", True)])
@pytest.mark.parametrize("bits", [12, 16, 20])
def test_a2q_obeys_the_bounds_of_the_papers(quantizer, centred, bits):
    model, x = conv_net(), sample("conv")
    apply_plan(model, uniform(model, accumulator=bits), (x,), quantizer=quantizer)
    bound = a2q_plus_l1_bound(bits, 8) if centred else a2q_l1_bound(bits, 8, False)
    for name, layer in find_layers(model).items():
        integers = unroll_weight(layer, integer_weight(name, layer)[0]).flatten(0, 1).numpy()
        assert all(int(np.abs(row).sum()) <= bound for row in integers)


def test_a_budget_that_is_not_known_yet_is_asked_for():
    model = conv_net()
    model[0].weight_quant.set_input_range(None)
    with pytest.raises(MissingInputQuantizer, match=r"layer '0'.*run one forward"):
        accumulator_penalty(model)
