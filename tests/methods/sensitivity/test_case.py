"""What scorers are given: ties of the model, widths that arrive, and a fingerprint of it all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.formats import minifloat
from brevitas_axe.methods.allocate import Quantity, allocate_bits, make_problem
from brevitas_axe.methods.sensitivity import case as case_module
from brevitas_axe.methods.sensitivity import make_case, make_choices, score
from brevitas_axe.methods.sensitivity.case import fingerprint
from brevitas_axe.model.apply.activations import check_arriving, set_input_bits
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.run.quantize import quantize
from tests.model.apply.test_activations import Fork
from tests.model.test_prepare import X

OPTIONS = tuple(LayerPrecision(4, bits) for bits in (3, 8))


@pytest.fixture
def fork() -> nn.Module:
    torch.manual_seed(0)
    return to_brevitas(Fork().eval(), as_batches([X]))


def test_choices_without_the_ties_of_the_model_get_them(fork) -> None:
    choices = Choices(dict.fromkeys(("left", "right", "stem"), OPTIONS))
    scores = score(fork, [X], choices, "pmpq")
    assert scores.choices == Choices(choices.layers, (("left", "right"),))
    # One of the two layers alone would want more bits.
    scores.harm["left"][:] = 0.0
    scores.harm["right"][:] = [1.0, 0.0]
    bits = Quantity(tuple(scores.harm[name] * 0 + [3.0, 8.0] for name in choices.layers))
    found = allocate_bits(make_problem(scores, {"bits": bits}, {"bits": 19.0}), "ilp")
    set_input_bits(fork, found.plan, (X[:1],))


def test_ties_of_the_choices_stay(fork) -> None:
    choices = Choices(dict.fromkeys(("left", "right", "stem"), OPTIONS), (("stem", "right"),))
    assert make_case(fork, [X], choices).choices.same_input == (("left", "right", "stem"),)


def test_tied_layers_without_common_bits_are_refused(fork) -> None:
    choices = Choices({"left": OPTIONS[:1], "right": OPTIONS[1:]})
    with pytest.raises(InvalidPlan, match="left, right read the same activation"):
        make_case(fork, [X], choices)


def test_a_tie_of_no_layers_is_refused() -> None:
    with pytest.raises(InvalidPlan, match="group without layers"):
        Choices({"a": OPTIONS}, ((),))


def test_other_bits_than_wanted_are_named() -> None:
    check_arriving("a", None, None)
    check_arriving("a", 4, InputRange(-8, 7))
    with pytest.raises(InvalidPlan, match=r"'a' is given 4 input bits, but .* of 3 bits"):
        check_arriving("a", 4, InputRange(0, 7))
    with pytest.raises(InvalidPlan, match="a float input arrives"):
        check_arriving("a", 4, None)


class Scaled(nn.Module):
    """Its forward depends on a number that is no parameter."""

    factor = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 5)

    def forward(self, x):
        return self.layer(x.flatten(1)) * self.factor


def test_the_fingerprint_sees_constants_of_a_forward_and_the_version(monkeypatch) -> None:
    def current() -> str:
        torch.manual_seed(0)
        model = to_brevitas(Scaled().eval(), as_batches([X]))
        choices = make_choices(model, (X[:1],), weight=(2, 4))
        return fingerprint(make_case(model, [X], choices), "scorer")

    first = current()
    assert current() == first
    monkeypatch.setattr(Scaled, "factor", 2.0)
    assert current() != first
    monkeypatch.undo()
    monkeypatch.setattr(case_module, "version", lambda package: "another")
    assert current() != first


def test_grids_of_formats_are_those_of_the_quantizers_that_they_get(fork) -> None:
    options = (LayerPrecision(4, 4), LayerPrecision("e2m1", "e2m1"))
    case = make_case(fork, [X], Choices(dict.fromkeys(("stem", "left", "right"), options)))
    apply_plan(fork, Plan(dict.fromkeys(case.names, options[1])), (X,))
    for name, layer in find_layers(fork).items():
        x = torch.randn(3, layer.in_features)
        weight = case.rounded(name, options[1])[0]
        torch.testing.assert_close(weight, layer.quant_weight().value)
        grid = case.inputs[name]["e2m1"]
        assert grid.input_range == minifloat("e2m1").input_range
        numbers = set((grid(x) / grid.scale).round().flatten().tolist())
        assert numbers <= set(minifloat("e2m1").integers)
    [proxy] = [m for n, m in fork.named_modules() if n == "x_quant.act_quant"]
    torch.testing.assert_close(case.inputs["stem"]["e2m1"](X), proxy(X).value)


@pytest.mark.parametrize("scorer", ["local", "measured"])
def test_a_plan_of_integers_and_formats_keeps_the_budget_and_is_solved(fork, scorer) -> None:
    given = make_choices(fork, (X,), weight=(4, "e2m1"), input=(4, "e2m1"))
    scores = score(fork, [X], given, scorer)
    assert all((harm >= -1e-6).all() for harm in scores.harm.values())
    bits = Quantity(
        tuple(np.array([float(c.weight_bits) for c in o]) for o in given.layers.values())
    )
    found = allocate_bits(make_problem(scores, {"bits": bits}, {"bits": 12.0}), "ilp")
    result = quantize(fork, [X], found.plan, progress=False)
    assert result.certificate.ok
    assert result.plan == found.plan
