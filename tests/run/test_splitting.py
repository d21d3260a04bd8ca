"""Widths that a split starts from, and those of its branches."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.model.branches import BranchedLinear
from brevitas_axe.model.prepare import as_batches
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.request import Request, layer_widths, requested
from brevitas_axe.run.splitting import split_model


def net() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 8))
    for name in ("0", "2"):
        weight = model.get_submodule(name).get_parameter("weight")
        weight.data *= torch.rand(len(weight), 1) ** 2 * 4
    return model, torch.randn(256, 24)


def request(plan: Plan | LayerPrecision, **rules: dict) -> Request:
    recipe = Recipe(split="row_importance", rules={k.strip("_"): r for k, r in rules.items()})
    return requested(plan, recipe, (), Run(), {})


def test_without_a_plan_a_split_starts_from_uniform_widths_and_rules() -> None:
    model, x = net()
    asked = request(LayerPrecision(3, 8, accumulator=20), _0={"weight": 5}, _3={"exclude": True})
    split, found = split_model(model, as_batches([x]), asked)
    assert isinstance(split.get_submodule("0"), BranchedLinear)
    assert type(split.get_submodule("3")) is nn.Linear
    bits = {name: precision.weight for name, precision in found.of_branches.items()}
    assert bits == {"0.more": 6, "0.rest": 5, "0.fewer": 4,
                    "2.more": 4, "2.rest": 3, "2.fewer": 2}  # fmt: skip
    assert {p.accumulator for p in found.of_branches.values()} == {20}
    layers = {n: m for n, m in split.named_modules() if isinstance(m, nn.Linear)}
    columns = dict.fromkeys(layers, 24)
    # The rule for the whole layer has been followed, and is no rule for a layer that is not there.
    plan = layer_widths(layers, columns, found.recipe, found.widths, found.of_branches)
    assert {name: p.weight for name, p in plan.layers.items()} == bits
    with pytest.raises(InvalidOption, match="applies to no layer"):
        layer_widths(layers, columns, found.recipe, found.widths)


def test_a_plan_s_layers_become_branches() -> None:
    model, x = net()
    asked = request(Plan({"0": LayerPrecision(4, 8)}))
    _, found = split_model(model, as_batches([x]), asked)
    assert found.of_branches == {}
    assert found.plan is not None
    assert {n: p.weight for n, p in found.plan.layers.items()} == {
        "0.more": 5,
        "0.rest": 4,
        "0.fewer": 3,
    }


def test_each_layer_has_the_split_of_the_last_pattern_that_applies() -> None:
    model, x = net()
    splits = {"*": "row_importance", "/[02]/": "trit_planes", "2": "channel_split:share=0.25"}
    recipe = Recipe(split={**splits, "3": None}).resolved()
    again = Recipe.from_yaml(recipe.to_yaml())
    assert again == recipe
    asked = requested(LayerPrecision(4, 8), again, (), Run(), {})
    split, found = split_model(model, as_batches([x]), asked)
    assert set(found.of_branches) == {"0.coarse", "0.fine", "2.rest", "2.outliers"}
    assert type(split.get_submodule("3")) is nn.Linear
    torch.testing.assert_close(split(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_pattern_that_no_layer_has_is_refused() -> None:
    model, x = net()
    asked = requested(None, Recipe(split={"*.mlp": "slim"}), (), Run(), {})
    with pytest.raises(
        InvalidOption, match=r"'\*.mlp' applies to no linear layer; there are: 0, 2"
    ):
        split_model(model, as_batches([x]), asked)
    with pytest.raises(InvalidOption, match="a split starts with a pattern"):
        Recipe(split={"": "slim"})


def test_layers_without_a_plan_stay_whole() -> None:
    model, x = net()
    split, _ = split_model(model, as_batches([x]), request(Plan({"0": LayerPrecision(4, 8)})))
    assert isinstance(split.get_submodule("0"), BranchedLinear)
    assert type(split.get_submodule("2")) is nn.Linear


def test_an_allocated_plan_keeps_its_bits_on_average() -> None:
    model, x = net()
    model.get_submodule("0").weight.data *= torch.tensor([0.1, 5, 1]).repeat_interleave(8)
    plan = Plan({"0": LayerPrecision(2, 8, tile=8), "2": LayerPrecision(3, 8, tile=8)})
    both = requested(plan, Recipe(split={"0": "slim", "2": "trit_planes"}), (), Run(), {})
    with pytest.raises(InvalidPlan, match=r"'2' is planned with 3 bits .* its split takes 4"):
        split_model(model, as_batches([x]), both)
    one = requested(plan, Recipe(split={"0": "slim"}), (), Run(), {})
    split, found = split_model(model, as_batches([x]), one)
    assert found.plan is not None
    assert found.plan["2"] == plan["2"]
    counts = {n: split.get_submodule(n).get_parameter("weight").numel() for n in found.plan.layers}
    stored = sum(counts[n] * (p.weight or 0) for n, p in found.plan.layers.items() if n != "2")
    assert stored == 2 * 24 * 16
    assert len(found.plan.layers) > 2
