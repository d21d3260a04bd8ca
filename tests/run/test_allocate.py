"""Bits under budgets from Python, and the solve that takes the plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.plan import Choices, LayerPrecision
from brevitas_axe.recipe import Run
from brevitas_axe.run.allocate import AllocateResult, allocate
from brevitas_axe.run.quantize import quantize

X = torch.rand(32, 12, generator=torch.Generator().manual_seed(0))
QUIET = Run(progress=False)
BUDGET = {"bops": 2500.0}
WIDTHS = {"weight": (2, 4, 8), "input": (4, 8), "accumulator": (12, 16)}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


def found(model: nn.Module, choices=WIDTHS, budgets=BUDGET, **options) -> AllocateResult:
    return allocate(model, [X], budgets, choices, run=QUIET, **options)


@pytest.mark.parametrize("prepared", [False, True], ids=["float model", "Brevitas model"])
def test_the_plan_is_what_quantize_takes(prepared: bool) -> None:
    model = to_brevitas(net(), as_batches([X])) if prepared else net()
    result = found(model)
    assert result.costs["bops"] <= BUDGET["bops"]
    assert set(result.plan.layers) == {"0", "2"}
    assert result.problem.budgets == BUDGET
    solved = quantize(model, [X], result.plan, quality="fast", run=QUIET)
    assert solved.plan == result.plan
    assert solved.certificate.ok
    calls = observe_inputs(solved.model, find_layers(solved.model), (X,))
    for name, [arriving] in calls.items():
        assert arriving is not None
        assert arriving.bit_width == result.plan[name].input


def test_choices_are_the_only_ones() -> None:
    only = {"0": (LayerPrecision(3, 5),), "2": (LayerPrecision(5, 4), LayerPrecision(2, 4))}
    plan = found(net(), Choices(only)).plan
    assert plan["0"] == only["0"][0]
    assert plan["2"] in only["2"]


def test_the_front_falls_as_costs_rise() -> None:
    result = found(net())
    front = result.front(points=6)
    costs, harms = [p.costs["bops"] for p in front], [p.harm for p in front]
    assert costs == sorted(costs)
    assert harms == sorted(harms, reverse=True)
    assert len(front) > 1
    with pytest.raises(InvalidOption, match="no budget 'watts' to sweep, only: bops"):
        result.front("watts")


def test_several_metrics_go_to_an_allocator_that_takes_them() -> None:
    result = found(net(), allocator="search:trials=1", metric=["kl", "mse", "kl"])
    assert list(result.scores.metrics) == ["mse"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budgets": {}}, "there is no budget"),
        ({"budgets": {"watts": 1.0}}, "'watts' is not registered"),
        ({"choices": {"bits": (2, 4)}}, "'bits' is no width to choose"),
        ({"metric": ["kl", "mse"]}, "'ilp' looks at one metric; give one, or use 'search'"),
        ({"metric": []}, "there is no metric"),
        ({"allocator": "shares"}, "judges all of these layers alike; .*'decoupled'"),
        ({"target": 0.1}, "takes no target"),
        ({"max_cycles": 0}, "max_cycles must be at least 1"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(options: dict, says: str, monkeypatch) -> None:
    monkeypatch.setattr("brevitas_axe.run.allocate.score", lambda *_, **__: pytest.fail("scored"))
    with pytest.raises(InvalidOption, match=says):
        found(net(), **options)
