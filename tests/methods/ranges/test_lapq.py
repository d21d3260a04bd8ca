"""LAPQ: every step against a search written down here, and losses that never rise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe import Int8WeightPerChannelFloatAXE, LayerPrecision, quantize
from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.methods.ranges.lapq import Lapq, lapq, vertex
from brevitas_axe.methods.ranges.protocol import RangeCase
from brevitas_axe.registry import method
from tests.contracts.test_ranges import case

X = torch.randn(4000, generator=torch.Generator().manual_seed(0)).double()


def error(x: torch.Tensor, share: float, bits: int, power: float) -> float:
    end = share * float(x.abs().max())
    step = end / 2 ** (bits - 1)
    rounded = (x / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step
    return float((rounded - x).abs().pow(power).mean())


@pytest.mark.parametrize("power", [2.0, 3.0, 4.0])
@pytest.mark.parametrize("kind", ["gauss", "half", "heavy"])
def test_the_range_of_a_norm_is_the_best_one_of_a_fine_grid(kind: str, power: float) -> None:
    x = {"gauss": X, "half": X.relu(), "heavy": X**3}[kind]
    share = lapq.least_errors(case(x, 4), [power])[0]["x"]
    fine = min(error(x, step / 2000, 4, power) for step in range(1, 2001))
    assert error(x, share, 4, power) <= fine * 1.005


def test_larger_norms_clip_less() -> None:
    found = [shares["x"] for shares in lapq.least_errors(case(X**3, 4), [2.0, 3.0, 4.0])]
    assert found == sorted(found)
    assert found[0] < 0.7 * found[-1]


def test_a_parabola_gives_its_vertex_only_where_that_is_a_minimum_between() -> None:
    powers = np.linspace(2, 4, 10)
    assert vertex(powers, (powers - 2.7) ** 2 + 1) == pytest.approx(2.7)
    assert vertex(powers, -((powers - 2.7) ** 2)) is None
    assert vertex(powers, (powers - 5) ** 2) is None
    assert vertex(powers, powers) is None
    assert vertex([2.0, 3.0], [1.0, 2.0]) is None


@pytest.mark.parametrize("sign", [1, -1])
def test_a_loss_that_is_concave_in_p_does_not_take_the_vertex(sign: int) -> None:
    """The loss of a norm's range is planted, by the norm whose range it is."""
    given = case(X**3, 4)
    fitter = Lapq(iterations=0)
    powers = np.linspace(2, 4, 10).tolist()
    shares = [each["x"] for each in fitter.least_errors(given, powers)]
    order = np.argsort(shares)

    def planted(asked) -> float:
        power = np.interp(asked["x"], np.array(shares)[order], np.array(powers)[order])
        return sign * (power - 2.9) ** 2 if asked["x"] < 1 else 100.0

    found = fitter.stages(replace(given, loss=planted))
    power = np.interp(found["vertex"][0]["x"], np.array(shares)[order], np.array(powers)[order])
    if sign == 1:
        assert power == pytest.approx(2.9, abs=0.03)
        assert found["vertex"][1] < found["norms"][1]
    else:
        assert power == pytest.approx(4, abs=0.01)
        assert found["vertex"] == found["norms"]


def net() -> nn.Module:
    torch.manual_seed(0)
    options = {"weight_quant": Int8WeightPerChannelFloatAXE, "weight_bit_width": 4,
               "input_quant": Int8ActPerTensorFloat, "input_bit_width": 4}  # fmt: skip
    model = nn.Sequential(
        qnn.QuantLinear(16, 12, True, **options), nn.ReLU(), qnn.QuantLinear(12, 3, True, **options)
    )
    with torch.no_grad(), calibration_mode(model):
        model(inputs())
    return model.eval()


def inputs() -> torch.Tensor:
    return torch.randn(256, 16, generator=torch.Generator().manual_seed(1)) ** 3


class Staged:
    """Keeps the cases that it is given."""

    facts, weights = lapq.facts, True

    def __init__(self) -> None:
        self.stages: list = []
        self.cases: list[RangeCase] = []

    def __call__(self, given: RangeCase):
        self.cases.append(given)
        self.stages.append(Lapq(grid=40, evaluations=150).stages(given))
        return self.stages[-1]["powell"][0]


def test_no_step_raises_the_loss_of_a_model_and_the_last_one_is_what_it_has(monkeypatch) -> None:
    model, noting = net(), Staged()
    monkeypatch.setattr("brevitas_axe.methods.ranges.fitting.method", lambda room, spec: spec)
    shares = fit_ranges(model, [inputs()], bits=[4], fitter=noting)
    assert set(shares) == {f"{i}.{kind}_quant" for i in (0, 2) for kind in ("input", "weight")}
    [stages] = noting.stages
    losses = [stages[step][1] for step in ("max", "norms", "vertex", "powell")]
    assert losses == sorted(losses, reverse=True)
    assert losses[3] < losses[2] < 0.7 * losses[0]
    floats = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))
    floats.load_state_dict(net().state_dict(), strict=False)
    with torch.no_grad():
        measured = float((model(inputs()) - floats(inputs())).square().mean())
    assert measured == pytest.approx(losses[3], rel=1e-4)


def test_it_is_named_in_a_recipe_and_sets_weights_too() -> None:
    x = inputs()
    floats = nn.Sequential(nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    options = {"plan": LayerPrecision(3, 4, 12), "solver": "gptq", "quality": "fast"}
    short = "lapq:norms=3,grid=40,evaluations=50"
    found = [
        quantize(floats, [x], ranges=spec, progress=False, **options)
        for spec in (short, f"{short},weights=false", "mse")
    ]
    assert all(each.certificate.ok for each in found)
    scales = [dict(each.model.named_modules())["0"].quant_weight().scale for each in found]
    assert not torch.equal(scales[0], scales[1])
    assert torch.equal(scales[1], scales[2])


def test_bad_options_are_named() -> None:
    for spec in ("lapq:norms=0", "lapq:least_p=5", "lapq:grid=1", "lapq:iterations=-1"):
        with pytest.raises(InvalidOption, match="Lapq must be"):
            method("ranges", spec)
