"""One set of weights under many plans, and the accumulator under each."""

from __future__ import annotations

import random

import pytest
import torch

from brevitas_axe.errors import InvalidPlan
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.model.apply.activations import input_sources
from brevitas_axe.model.apply.switches import Switches
from brevitas_axe.model.apply.weights import apply_plan, current_scale
from brevitas_axe.model.layers import find_layers, integer_weight, unroll_weight
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from tests.run.finetune.nets import batches, conv_net

WIDTHS = (2, 4, 8)
OPTIONS = tuple(
    LayerPrecision(bits, bits, accumulator, tile)
    for bits in WIDTHS
    for accumulator, tile in ((11, None), (9, 4))
)


def switched(fitted: bool = False):
    model = conv_net()
    calls = [x for x, _ in batches("conv", 2)]
    if fitted:
        fit_ranges(model, calls, WIDTHS, "mse:weights=true", WIDTHS)
    choices = Choices(dict.fromkeys(find_layers(model), OPTIONS))
    return model, Switches(model, choices, input_sources(model, (calls[0],))), calls[0]


def widest_sum(layer, tile: int | None) -> int:
    """Of any tile, for inputs of the layer's own range, by exact integers."""
    rows = unroll_weight(layer, integer_weight("layer", layer)[0]).flatten(0, 1)
    arrives = layer.weight_quant.input_range
    products = torch.stack((rows * arrives.low, rows * arrives.high))
    most, least = products.amax(0), products.amin(0)
    parts = [
        (m.sum(1), s.sum(1))
        for m, s in zip(
            most.split(tile or rows.shape[1], 1), least.split(tile or rows.shape[1], 1), strict=True
        )
    ]
    return max(int(max(m.max(), -s.min())) for m, s in parts)


def test_the_accumulator_is_kept_under_every_plan_while_weights_are_trained() -> None:
    model, switches, x = switched()
    generator, optimizer = random.Random(0), torch.optim.SGD(model.parameters(), 0.05)
    bound = False
    for _ in range(12):
        plan = Plan({name: generator.choice(OPTIONS) for name in find_layers(model)})
        switches.set(plan)
        model.train()
        optimizer.zero_grad()
        model(x).square().mean().backward()
        for name, layer in find_layers(model).items():
            chosen = plan[name]
            assert chosen.weight is not None
            assert chosen.accumulator is not None
            assert layer.weight_quant.input_range.bit_width == chosen.input
            integers = integer_weight(name, layer)[0]
            assert int(integers.abs().max()) <= 2 ** (chosen.weight - 1) - 1
            limit = 2 ** (chosen.accumulator - 1) - 1
            most = widest_sum(layer, chosen.tile)
            assert most <= limit
            bound |= most > limit / 2
        optimizer.step()
    assert bound, "no budget was ever near"


def test_every_width_has_a_range_of_its_own_that_only_its_steps_move() -> None:
    model, switches, x = switched(fitted=True)
    layers = find_layers(model)
    scales = {}
    for bits in WIDTHS:
        switches.set(Plan.uniform(layers, LayerPrecision(bits, bits, 11)))
        scales[bits] = {name: current_scale(layer).clone() for name, layer in layers.items()}
    ranges = {bits: scales[bits]["6"] * (2 ** (bits - 1) - 1) for bits in WIDTHS}
    assert (ranges[2] < 0.9 * ranges[8]).all()  # fitted: few levels clip more
    switches.set(Plan.uniform(layers, LayerPrecision(4, 4, 11)))
    model.train()
    model(x).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.5).step()
    for bits in WIDTHS:
        switches.set(Plan.uniform(layers, LayerPrecision(bits, bits, 11)))
        same = torch.equal(current_scale(layers["6"]), scales[bits]["6"])
        assert same == (bits != 4)


def test_a_settled_model_is_an_ordinary_one_with_the_plan() -> None:
    model, switches, x = switched()
    layers = find_layers(model)
    plan = Plan({name: LayerPrecision(4, 8, 11) for name in layers})
    switches.set(plan)
    model.eval()
    expected = model(x)
    switches.settle()
    assert not any("quantizers" in key for key in model.state_dict())
    apply_plan(model, plan, (x,))
    assert torch.equal(model(x), expected)
    fresh = conv_net()
    apply_plan(fresh, plan, (x,))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh.eval()(x), expected)


def test_floating_point_formats_are_refused_by_the_layers_name() -> None:
    model = conv_net()
    choices = Choices({"0": (LayerPrecision(4, 4), LayerPrecision("e2m1", 4))})
    with pytest.raises(InvalidPlan, match="'0' is planned in e2m1, but switches choose among only"):
        Switches(model, choices, {})
