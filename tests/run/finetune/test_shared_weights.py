"""What a plan is to a searcher: decisions of layers, alone or together."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Problem, Quantity
from brevitas_axe.plan import Choices, LayerPrecision
from brevitas_axe.run.finetune.shared_weights import Decisions, Training

W2, W4, W8 = (LayerPrecision(bits, bits) for bits in (2, 4, 8))
MIXED = LayerPrecision(8, 4)


def problem(choices: Choices) -> Problem:
    costs = Quantity(
        tuple(np.array([float(c.weight or 0) for c in each]) for each in choices.layers.values())
    )
    return Problem(choices, costs, {"bits": costs}, {"bits": 10.0})


def test_layers_that_read_one_activation_decide_together() -> None:
    choices = Choices(
        {"a": (W2, W4, MIXED), "b": (W4, W8), "c": (W4, W2)}, same_input=(("a", "c"),)
    )
    decisions = Decisions(problem(choices))
    assert list(decisions.space.decisions) == ["a + c", "b"]
    assert decisions.space.decisions["a + c"] == ((W2, W2), (W4, W4), (MIXED, W4))
    assignment = decisions.assignment({"a + c": (MIXED, W4), "b": (W8,)})
    assert assignment == (2, 1, 0)
    assert decisions.problem.plan(assignment).layers == {"a": MIXED, "b": W8, "c": W4}
    assert decisions.cost(assignment) == 8 + 8 + 4
    assert decisions.target == 10


def test_too_many_combinations_are_refused() -> None:
    options = tuple(LayerPrecision(weight, 4) for weight in range(2, 12))
    names = ("a", "b", "c", "d")
    choices = Choices(dict.fromkeys(names, options), same_input=(names,))
    with pytest.raises(InvalidOption, match="a \\+ b \\+ c \\+ d read one activation"):
        Decisions(problem(choices))


def test_settings_are_checked() -> None:
    with pytest.raises(InvalidOption, match="epochs"):
        Training(epochs=0)
    with pytest.raises(InvalidOption, match="weight"):
        Training(cost_weight=-1.0)
