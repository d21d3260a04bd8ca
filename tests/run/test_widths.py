"""Widths that are chosen: never worse than the uniform ones that were tried, and told in a plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.cost import Folding, layer_shapes
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe
from brevitas_axe.registry import method
from brevitas_axe.run import widths
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.quantize_blocks import quantize_blocks
from brevitas_axe.run.result import BlocksResult, QuantizeResult
from tests.run.tiny import batches, tiny

X = torch.rand(48, 12, generator=torch.Generator().manual_seed(1))
BATCHES = list(X.split(24))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


def run(model: nn.Module | None = None, **options):
    options = {"widths": "auto", "quality": "fast", "progress": False, **options}
    return quantize(net() if model is None else model, BATCHES, **options)


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory) -> tuple[QuantizeResult, Path]:
    """A run whose only limit are 9 bits, and the folder of its state."""
    state = tmp_path_factory.mktemp("nine")
    return run(accumulator_bit_width=9, state=state), state


def divergence(model: nn.Module) -> float:
    with torch.no_grad():
        real, mine = (m(X).log_softmax(-1) for m in (net(), model))
    return float((real.exp() * (real - mine)).sum(-1).mean())


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def test_it_is_never_worse_than_the_uniform_widths_that_were_tried(nine) -> None:
    result, _ = nine
    assert result.certificate.ok
    uniform = {row["widths"]: row["divergence"] for row in result.tried}
    found = divergence(result.model)
    assert found == pytest.approx(min(uniform.values()), rel=1e-4)
    pairs = [title for title in uniform if title != "by layer"]
    assert len(pairs) >= 3
    weight, inputs = map(int, pairs[0].removeprefix("W").split("A"))
    plain = run(
        widths=None, accumulator_bit_width=9, weight_bit_width=weight, input_bit_width=inputs
    )
    assert divergence(plain.model) == pytest.approx(uniform[pairs[0]], rel=1e-4)
    assert found <= divergence(plain.model) * (1 + 1e-4)


def test_the_plan_that_comes_back_gives_the_same_integers(nine) -> None:
    first, _ = nine
    assert set(first.plan.layers) == {"0", "2", "4"}
    assert all(p.accumulator == 9 for p in first.plan.layers.values())
    assert (first.recipe.widths, first.recipe.budget) == (None, {})
    again = quantize(net(), BATCHES, first.plan, first.recipe, progress=False)
    assert again.plan == first.plan
    assert all(torch.equal(q, integers(again.model)[n]) for n, q in integers(first.model).items())


def test_a_budget_is_kept_and_a_share_is_one_of_uniform_four_bits() -> None:
    shapes = layer_shapes(to_brevitas(net(), as_batches(BATCHES)), (X[:1],), {})

    def cost(plan: Plan) -> float:
        price = method("cost", "bops")
        return sum(price(shapes[name], p, Folding()) for name, p in plan.layers.items())

    four = cost(Plan.uniform(shapes, LayerPrecision(4, 4)))
    for limit in ("60%", 0.6 * four):
        result = run(budget={"bops": limit})
        assert 0 < cost(result.plan) <= 0.6 * four * (1 + 1e-9)
        assert "W4A4" not in {row["widths"] for row in result.tried}


def test_an_impossible_budget_is_refused_before_anything_is_scored(monkeypatch) -> None:
    monkeypatch.setattr(widths, "score", lambda *_, **__: pytest.fail("it was scored"))
    with pytest.raises(InvalidOption, match="the least possible"):
        run(budget={"bops": 1})


def test_rules_are_followed() -> None:
    rules = {"0": {"weight": 8, "input": 8}, "4": {"exclude": True}}
    result = run(accumulator_bit_width=12, recipe=Recipe(rules=rules))
    assert set(result.plan.layers) == {"0", "2"}
    assert (result.plan["0"].weight, result.plan["0"].input) == (8, 8)


def test_a_function_that_judges_decides() -> None:
    seen = []

    def judge(model: nn.Module) -> float:
        seen.append(float(model(X).square().mean()))
        return -seen[-1]  # the smallest outputs win, however far they are from the float ones

    with torch.no_grad():
        result = run(accumulator_bit_width=9, validate=judge)
        assert float(result.model(X).square().mean()) == pytest.approx(min(seen))
    assert [row["validation"] for row in result.tried] == [-value for value in seen]
    with pytest.raises(InvalidOption, match="a number"):
        run(accumulator_bit_width=9, validate=lambda model: None)


def test_a_killed_run_takes_up_what_it_had(nine) -> None:
    first, state = nine
    again = run(accumulator_bit_width=9, state=state)
    assert all(entry["resumed"] for entry in again.layers)
    assert again.tried == first.tried


def test_a_model_with_quantizers_of_its_own_gets_widths_too() -> None:
    own = to_brevitas(net(), as_batches(BATCHES))
    result = run(own, accumulator_bit_width=9)
    assert result.certificate.ok
    assert result.recipe.ranges == Recipe.CALIBRATED


@pytest.mark.parametrize("options", [{}, {"smooth": 0.5, "activations": "per_token"}], ids=str)
def test_blocks_get_widths_too(options, monkeypatch) -> None:
    monkeypatch.setattr(widths, "WEIGHT_BITS", (3, 4))
    monkeypatch.setattr(widths, "INPUT_BITS", (4, 8))
    model = tiny("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = quantize(
        model, batches("llama"), widths="auto", accumulator_bit_width=12, quality="fast",
        progress=False, **options,
    )  # fmt: skip
    assert isinstance(result, BlocksResult)
    assert result.certificate.ok
    assert len(result.plan.layers) == 14
    assert len(result.tried) >= 3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    if options:  # in place, by transforms that wrap layers too
        asked = {"accumulator_bit_width": 12, "quality": "fast", "progress": False, **options}
        found = quantize_blocks(model, batches("llama"), widths="auto", **asked)
        assert found.model is model
        assert found.tried == result.tried
        assert found.plan == result.plan
        layers = find_layers(result.model, result.floats)
        assert all(
            torch.equal(
                integer_weight(name, layer)[0],
                integer_weight(name, model.get_submodule(name))[0],
            )
            for name, layer in layers.items()
        )


P = {"accumulator_bit_width": 9}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "needs a limit"),
        ({"budget": {"max_cycles": 9}}, "needs a limit"),
        ({**P, "weight_bit_width": 4}, "leave out weight_bit_width, or widths"),
        ({"budget": {"bops": 9}, "plan": Plan({})}, "leave out a plan, or widths"),
        ({"plan": LayerPrecision(input=4, accumulator=9)}, "leave out input, or widths"),
        ({**P, "widths": "best"}, "widths 'best' is unknown; choose from auto, null"),
        ({**P, "widths": None, "budget": {"bops": 9}}, "set widths to auto"),
        ({**P, "widths": None, "validate": divergence}, "give widths='auto' too"),
        ({**P, "validate": 3}, "must be a function"),
        ({**P, "budget": {"bops": "nine"}}, "a positive number, or a share such as '80%'"),
        ({**P, "budget": {"bops": -1}}, "a positive number"),
        ({**P, "budget": {"bops": True}}, "a positive number"),
        ({**P, "budget": {"guess": 9}}, "guess"),
        ({**P, "budget": {"finn_cycles": 9}}, "is no budget for bits"),
        ({**P, "budget": {"bops": 9, "max_cycles": 0}}, "max_cycles must be"),
        ({**P, "budget": 9}, "a budget is a mapping"),
        ({**P, "recipe": Recipe(split="channel_split")}, "leave out the split"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_be_meant_is_said(options, says) -> None:
    with pytest.raises(InvalidOption, match=says):
        run(**options)
