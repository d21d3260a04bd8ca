"""The driver solves the branches of a layer together, and stores them apart."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat
from torch import Tensor, nn

from brevitas_axe.model.branches import BranchedLinear, Part
from brevitas_axe.model.layers import Layer, find_layers, integer_weight
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.run.solve import axe_mode
from brevitas_axe.run.solve import mode as mode_module
from brevitas_axe.run.solve.state import SavedLayers

K, ROWS = 24, 16
NAMES = ["0.low", "0.high", "2"]


def linear(inputs: int, outputs: int, bits: int, bias: bool = True) -> nn.Module:
    return qnn.QuantLinear(
        inputs,
        outputs,
        bias=bias,
        weight_quant=Int8WeightPerChannelFloat,
        weight_bit_width=3,
        input_quant=Int8ActPerTensorFloat,
        input_bit_width=bits,
    )


def data(seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(K, K, generator=torch.Generator().manual_seed(9))
    return torch.randn(128, K, generator=generator) @ mix / K**0.5


def build(wrap=lambda layer: layer) -> nn.Module:
    """Even columns with 6-bit inputs, odd ones with 8-bit inputs, and a layer after them."""
    torch.manual_seed(0)
    parts = {
        "low": Part(linear(K // 2, ROWS, 6), torch.arange(0, K, 2)),
        "high": Part(linear(K // 2, ROWS, 8, bias=False), torch.arange(1, K, 2)),
    }
    model = nn.Sequential(wrap(BranchedLinear(K, ROWS, parts)), nn.ReLU(), linear(ROWS, 4, 8))
    model = model.eval()
    with torch.no_grad(), calibration_mode(model):
        model(data())
    return model


def run(model: nn.Module, state: Path | None = None, **options) -> axe_mode:
    options = {"accumulator_bit_width": 13, "solver": "qronos", **options}
    with torch.no_grad(), axe_mode(model, state=state, **options) as axe:
        for part in data().split(64):
            axe.model(part)
        while axe.update():
            pass
    return axe


def integers(model: nn.Module) -> dict[str, Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, yours = integers(one), integers(other)
    return all(torch.equal(mine[name], yours[name]) for name in mine)


def error(model: Layer, first: Tensor) -> float:
    return float((model[0](data()) - first).square().mean())


@pytest.mark.parametrize("quality", ["fast", "best"])
@pytest.mark.parametrize("bits", [None, 13])
def test_together_is_better_than_apart(monkeypatch, quality: str, bits: int | None) -> None:
    options = {"accumulator_bit_width": bits, "quality": quality}
    with torch.no_grad():
        whole: Layer = build()[0]
        weight = torch.empty(ROWS, K)
        weight[:, 0::2], weight[:, 1::2] = whole.low.weight, whole.high.weight
        first = data() @ weight.T + whole.low.bias
        joint, apart = build(), build()
        axe = run(joint, **options)
        with monkeypatch.context() as patch:
            patch.setattr(mode_module, "branches_of", lambda model, layers: {})
            run(apart, **options)
        assert error(joint, first) < error(apart, first)
    assert [entry["name"] for entry in axe.log] == NAMES
    # The error is that of the sum.
    assert axe.log[0]["error"] == axe.log[1]["error"]
    assert [entry["inputs"] for entry in axe.log] == [K // 2, K // 2, ROWS]
    for entry in axe.log:
        assert bits is None or entry["budget_used"] <= 1


def test_every_branch_has_its_own_width() -> None:
    model = build()
    plan = Plan(
        {
            "0.low": LayerPrecision(accumulator=10),
            "0.high": LayerPrecision(weight=4, accumulator=14, tile=5),
            "2": LayerPrecision(),
        }
    )
    run(model, accumulator_bit_width=None, plan=plan)
    found = integers(model)
    low, high = found["0.low"], found["0.high"]
    assert int((low.abs().sum(1) * 32).max()) < 2**9 + 32
    assert int(high.abs().max()) > 3
    worst = [int((tile.abs().sum(1) * 128).max()) for tile in high.split(5, 1)]
    assert max(worst) > 2**9
    assert all(sums < 2**13 + 128 for sums in worst)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("saved", [0, 1, 2, 3])
def test_a_run_that_stops_between_two_branches_goes_on(tmp_path, monkeypatch, saved: int) -> None:
    expected = build()
    run(expected)
    save, count = SavedLayers.save, 0

    def save_then_stop(self, *args) -> None:
        nonlocal count
        if count == saved:
            raise Killed
        count += 1
        save(self, *args)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(SavedLayers, "save", save_then_stop)
        run(build(), tmp_path)
    again = build()
    axe = run(again, tmp_path)
    assert same(again, expected)
    assert [entry["name"] for entry in axe.log] == NAMES
    resumed = [saved >= 2, saved >= 2, saved >= 3]
    assert [entry["resumed"] for entry in axe.log] == resumed
    third = build()
    assert all(entry["resumed"] for entry in run(third, tmp_path).log)
    assert same(third, expected)


def test_workers_give_the_same_integers() -> None:
    one, two = build(), build()
    run(one, workers=1)
    run(two, workers=2)
    assert same(one, two)


class Twice(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + self.layer(x.flip(-1))


def test_a_layer_that_is_called_twice_has_the_moments_of_both_calls() -> None:
    model = build(Twice)
    axe = run(model)
    assert [entry["name"] for entry in axe.log] == ["0.layer.low", "0.layer.high", "2"]
    assert [entry["samples"] for entry in axe.log] == [256, 256, 128]


def test_a_branch_that_is_left_out_is_left_alone() -> None:
    model = build()
    layer: Layer = model.get_submodule("0")
    before = layer.high.weight.clone()
    axe = run(model, exclude=("0.high",))
    assert [entry["name"] for entry in axe.log] == ["0.low", "2"]
    assert torch.equal(layer.high.weight, before)
