"""Which function batch norms were trained behind, and a solve that follows it."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from torch import nn

from brevitas_axe import quantize
from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity.case import make_case
from brevitas_axe.methods.sensitivity.choices import make_choices
from brevitas_axe.methods.sensitivity.plan_loss import PlanLoss
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.running import float_twin
from brevitas_axe.model.trained_function import solved_and_followed, trained_function
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.recipe import Recipe


@cache
def data() -> tuple[torch.Tensor, torch.Tensor]:
    """Points of five clusters."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 5, (600,), generator=generator)
    centres = torch.rand(5, 16, generator=generator)
    return centres[labels] + 0.2 * torch.randn(600, 16, generator=generator), labels


def untrained() -> nn.Sequential:
    torch.manual_seed(0)
    two = {"bias": False, "weight_bit_width": 2}
    return nn.Sequential(
        qnn.QuantIdentity(bit_width=8, return_quant_tensor=True),
        qnn.QuantLinear(16, 24, **two),
        nn.BatchNorm1d(24),
        qnn.QuantReLU(bit_width=2, return_quant_tensor=True),
        qnn.QuantLinear(24, 24, **two),
        nn.BatchNorm1d(24),
        qnn.QuantReLU(bit_width=2, return_quant_tensor=True),
        qnn.QuantLinear(24, 5, bias=True, weight_bit_width=2),
    )


def train(model: nn.Module) -> nn.Module:
    x, labels = data()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for _ in range(15):
        for some in torch.arange(500).split(50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[some]), labels[some]).backward()
            optimizer.step()
    return model.eval()


@cache
def aware() -> nn.Module:
    return train(untrained())


@cache
def calibrated() -> nn.Module:
    model = untrained()
    trained = train(float_twin(model).train())
    model.load_state_dict(trained.state_dict(), strict=False)
    with torch.no_grad(), calibration_mode(model.eval()):
        model(data()[0][:500])
    return model.eval()


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def accuracy(model: nn.Module) -> float:
    x, labels = data()
    with torch.no_grad():
        return float((model(x[500:]).argmax(1) == labels[500:]).float().mean())


def test_norms_tell_training_from_calibration() -> None:
    batches = [((data()[0][:100],), {})]
    assert trained_function(aware(), batches) == "quantized"
    assert trained_function(calibrated(), batches) == "float"
    assert aware().training is False


def test_norms_that_learned_nothing_tell_nothing() -> None:
    model = untrained().eval()
    model(data()[0])
    assert trained_function(model, [((data()[0],), {})]) == "float"


def test_what_is_solved_has_the_rounded_weights_and_the_same_integers() -> None:
    model = aware()
    before = integers(model)
    solved, followed = solved_and_followed(model, "quantized")
    assert followed is model
    assert all(torch.equal(before[name], found) for name, found in integers(solved).items())
    x = data()[0]
    torch.testing.assert_close(solved(x), model(x))
    torch.testing.assert_close(float_twin(solved)[1].weight, model[1].quant_weight().value)
    assert solved_and_followed(model, "float") == (model, None)


@pytest.mark.parametrize("quality", ["fast", "best"])
@pytest.mark.parametrize("solver", ["gpfq", "gptq", "qronos"])
def test_what_training_won_is_kept_where_nothing_limits_it(quality: str, solver: str) -> None:
    options = {"quality": quality, "solver": solver, "progress": False}
    result = quantize(aware(), [data()[0][:300]], **options)
    assert result.recipe.function == "quantized"
    given = integers(aware())
    assert all(torch.equal(given[name], found) for name, found in integers(result.model).items())


def test_under_a_limit_the_trained_function_is_nearer() -> None:
    x = data()[0][:300]
    limit = {"accumulator_bit_width": 10, "progress": False}
    found = {f: quantize(aware(), [x], function=f, **limit) for f in ("quantized", "float")}
    assert all(result.certificate.ok for result in found.values())
    with torch.no_grad():
        far = {f: float((r.model(x) - aware()(x)).norm()) for f, r in found.items()}
    assert far["quantized"] < far["float"]
    assert accuracy(found["quantized"].model) >= accuracy(found["float"].model)


def test_widths_are_chosen_by_the_trained_function() -> None:
    x = data()[0][:300]
    result = quantize(
        aware(), [x], accumulator_bit_width=16, widths="auto", quality="fast", progress=False
    )
    assert result.recipe.function == "quantized"
    assert result.certificate.ok


def test_harm_is_told_from_the_trained_function() -> None:
    x = data()[0][:300]
    choices = make_choices(aware(), (x[:1],), weight=(2, 3), input=(2, 8))
    own = Plan({n: LayerPrecision(weight=2, input=8 if n == "1" else 2) for n in choices.layers})
    harm = {f: PlanLoss(make_case(aware(), [x], choices, function=f))(own) for f in (None, "float")}
    assert harm[None] < 1e-9
    assert harm["float"] > 1e-2


def test_the_choice_is_the_users() -> None:
    x = data()[0][:100]
    assert quantize(calibrated(), [x], progress=False).recipe.function == "float"
    result = quantize(calibrated(), [x], function="quantized", progress=False)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), calibrated()(x))
    with pytest.raises(InvalidOption, match="function"):
        Recipe(function="trained")  # type: ignore[arg-type]
    plain = nn.Sequential(nn.Linear(16, 5))
    with pytest.raises(InvalidOption, match="no quantizers to follow"):
        quantize(plain, [x], function="quantized", progress=False)
