"""What every registered fitter of ranges promises, on a small net and on numbers alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFixedPoint, Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.ranges import fit_ranges
from brevitas_axe.methods.ranges.protocol import RangeCase, SearchedRange
from brevitas_axe.model.apply.activations import activation_quantizers, set_bits
from brevitas_axe.model.apply.ranges import current_bits
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.registry import method, methods

FITTERS = methods("ranges")
every = pytest.mark.parametrize("name", FITTERS)
X = torch.randn(400, 12, generator=torch.Generator().manual_seed(0))


def net(quantizer=Int8ActPerTensorFloat) -> nn.Module:
    torch.manual_seed(0)
    weights = {"weight_quant": Int8WeightPerChannelFloatAXE}
    model = nn.Sequential(
        qnn.QuantLinear(12, 8, True, input_quant=quantizer, **weights),
        nn.ReLU(),
        qnn.QuantLinear(8, 3, True, input_quant=Uint8ActPerTensorFloat, **weights),
    )
    with torch.no_grad(), calibration_mode(model):
        model(X)
    return model.eval()


def case(x: Tensor, bits: int) -> RangeCase:
    """One quantizer, written down here: signed, symmetric, round to nearest."""
    widest = float(x.abs().max())

    def rounded(name: str, share: float) -> Tensor:
        step = share * widest / 2 ** (bits - 1)
        return (x / step).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * step

    def loss(shares) -> float:
        return float((rounded("x", shares.get("x", 1.0)) - x).square().mean())

    return RangeCase({"x": x}, {"x": widest}, rounded, loss)


def test_all_are_there() -> None:
    assert {"kl", "lapq", "max", "mse", "percentile"} <= set(FITTERS)


@every
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", ["gauss", "heavy", "zeros", "one"])
def test_shares_lie_above_zero_and_not_above_one(name, bits, kind) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3000, generator=generator)
    x = {"gauss": x, "heavy": x**5, "zeros": 0 * x, "one": x[:1]}[kind]
    given, before = case(x, bits), x.clone()
    shares = FITTERS[name](given)
    assert set(shares) == {"x"}
    assert 0 < shares["x"] <= 1
    assert torch.equal(x, before)
    assert FITTERS[name](given) == shares


@pytest.mark.parametrize("name", [n for n, f in FITTERS.items() if isinstance(f, SearchedRange)])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_error_is_never_larger_than_that_of_the_whole_range(name, bits) -> None:
    fitter = FITTERS[name]
    for seed in range(3):
        x = torch.randn(2000, generator=torch.Generator().manual_seed(seed)) ** 3
        given = case(x, bits)
        chosen = fitter.error_of(given, "x", fitter(given)["x"])
        assert chosen <= fitter.error_of(given, "x", 1.0)
        assert chosen == min(fitter.error_of(given, "x", share) for share in fitter.shares)


@pytest.mark.parametrize("name", [n for n, f in FITTERS.items() if hasattr(f, "error_of")])
@pytest.mark.parametrize("bits", [2, 4])
def test_weights_get_a_range_for_each_width(name, bits) -> None:
    model = net()
    with torch.no_grad():
        model(X)  # from now on the weights have ranges
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fitter = method("ranges", f"{name}:weights=true")
    seen: list[RangeCase] = []
    errors: list[float] = []

    @dataclass(frozen=True)
    class Noting:
        weights = True
        facts = fitter.facts

        def __call__(self, given: RangeCase):
            found, of = fitter(given), "0.weight_quant"
            if not seen:
                errors.extend(fitter.error_of(given, of, share) for share in (found[of], 1.0))
            seen.append(given)
            return found

    shares = fit_ranges(model, [X], bits=[8], fitter=Noting(), weight_bits=[bits])
    assert {*shares["0.weight_quant"]} == {bits, 8}
    sample = seen[0].samples["0.weight_quant"]
    weight = before["0.weight"] / before["0.weight"].abs().amax(1, keepdim=True)
    assert torch.allclose(sample, weight.flatten(), atol=1e-6)
    assert model.state_dict().keys() == before.keys()
    assert torch.equal(model[0].weight, before["0.weight"])
    twin = copy.deepcopy(model)
    apply_plan(twin, Plan({"0": LayerPrecision(weight=bits), "2": LayerPrecision(weight=8)}))
    most = 2 ** (bits - 1) - 1
    scale = before["0.weight"].abs().amax(1) / most * shares["0.weight_quant"][bits]
    assert torch.allclose(twin[0].quant_weight().scale.flatten(), scale, rtol=1e-5)
    assert errors[0] <= errors[1]


@every
def test_the_loss_of_the_model_is_not_larger_where_a_method_measures_it(name) -> None:
    losses = []
    asked = []

    @dataclass(frozen=True)
    class Noting:
        weights = FITTERS[name].weights
        facts = FITTERS[name].facts

        def __call__(self, given: RangeCase):
            def loss(shares):
                asked.append(given.loss(shares))
                return asked[-1]

            shares = FITTERS[name](replace(given, loss=loss))
            losses.append((given.loss(shares), given.loss({})))
            return shares

    model = net()
    for proxies in activation_quantizers(model).values():
        set_bits(proxies, 3)
    fit_ranges(model, [X], bits=[3], fitter=Noting())
    assert not asked or all(chosen <= whole for chosen, whole in losses)


@every
@pytest.mark.parametrize("quantizer", [Int8ActPerTensorFloat, Int8ActPerTensorFixedPoint])
def test_ranges_follow_the_bits_in_copies_too(name, quantizer) -> None:
    model = net(quantizer)
    with torch.no_grad():
        before = model(X)
    keys = set(model.state_dict())
    shares = fit_ranges(model, [X[:200], X[200:]], bits=(2, 4, 8), fitter=name)
    inputs = {"0.input_quant", "2.input_quant"}
    weights = {"0.weight_quant", "2.weight_quant"} if FITTERS[name].weights else set()
    assert set(shares) == inputs | weights
    assert all(set(shares[each]) == {2, 4, 8} for each in inputs)
    assert all(set(shares[each]) == {8} for each in weights)
    assert set(model.state_dict()) == keys
    assert current_bits(model[0].input_quant) == 8
    if all(found[8] == 1 for found in shares.values()):
        with torch.no_grad():
            assert torch.equal(model(X), before)
    twin = copy.deepcopy(copy.deepcopy(model))
    scales = []
    for each in (model, twin):
        proxies = activation_quantizers(each)["0.input_quant"]
        found = []
        for width in (2, 4, 8, 3, 8):
            set_bits(proxies, width)
            found.append(proxies[0](X).scale.item())
        scales.append(found)
    assert scales[0] == scales[1]
    assert scales[0][2] == scales[0][4]
    if quantizer is Int8ActPerTensorFloat:
        per_share = [s * 2 ** (w - 1) / shares["0.input_quant"][w]
                     for s, w in zip(scales[0], (2, 4, 8), strict=False)]  # fmt: skip
        assert per_share == pytest.approx([per_share[0]] * 3, rel=1e-5)


def test_the_loss_is_that_of_the_model_against_itself_in_float() -> None:
    model, seen = net(), []

    @dataclass(frozen=True)
    class Noting:
        weights = False
        facts = FITTERS["max"].facts

        def __call__(self, given: RangeCase):
            seen.append((given.loss({}), given.loss({"0.input_quant": 0.2})))
            return dict.fromkeys(given.samples, 1.0)

    fit_ranges(model, [X], bits=[4], fitter=Noting())
    twin = net()
    for proxies in activation_quantizers(twin).values():
        set_bits(proxies, 4)
    with torch.no_grad():
        wanted = float((twin(X) - float_net()(X)).square().mean())
    assert seen[0][0] == pytest.approx(wanted, rel=1e-4)
    assert seen[0][1] > 2 * seen[0][0]


def float_net() -> nn.Module:
    quantized = net()
    model = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    model.load_state_dict(quantized.state_dict(), strict=False)
    return model


def test_unknown_ones_are_named() -> None:
    with pytest.raises(InvalidOption, match="choose one of"):
        fit_ranges(net(), [X], fitter="guess")
    with pytest.raises(InvalidOption, match="between 0 and 1"):
        fit_ranges(net(), [X], fitter="mse:least=0")
