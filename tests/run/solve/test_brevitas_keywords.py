"""Habits of Brevitas's modes: what our modes accept, what they refuse, and in which words."""

from __future__ import annotations

import copy
import inspect
import re

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.gpfq import gpfq_mode
from brevitas.graph.gptq import gptq_mode
from brevitas.quant import Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.run.solve import axe_gpfq_mode, axe_gptq_mode, axe_mode, axe_qronos_mode
from brevitas_axe.run.solve.brevitas_keywords import _FIXED, _REFUSED, _RENAMED

X = torch.rand(32, 12, generator=torch.Generator().manual_seed(0))


class Branches(nn.Module):
    """Two layers that read one tensor, and one that reads theirs."""

    def __init__(self) -> None:
        super().__init__()
        quantized = {"input_quant": Uint8ActPerTensorFloat, "weight_bit_width": 4, "bias": False}
        self.left = qnn.QuantLinear(12, 6, **quantized)
        self.right = qnn.QuantLinear(12, 6, **quantized)
        self.last = qnn.QuantLinear(6, 3, **quantized)

    def forward(self, x):
        return self.last((self.left(x) + self.right(x)).relu())


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    model = Branches().eval()
    with torch.no_grad(), calibration_mode(model):
        model(X)
    return model


def solved(model: nn.Module, mode=axe_gptq_mode, **options) -> list[torch.Tensor]:
    model = copy.deepcopy(model)
    with torch.no_grad(), mode(model, quality="fast", **options) as axe:
        for _ in range(axe.num_layers):
            axe.model(X)
            axe.update()
    return [integer_weight(name, layer)[0] for name, layer in find_layers(model).items()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def test_every_keyword_of_brevitas_is_known() -> None:
    known = {*_FIXED, *_REFUSED, *_RENAMED, "group_of_parallel_layers"}
    known |= set(inspect.signature(axe_mode.__init__).parameters)
    for mode in (gpfq_mode, gptq_mode):
        assert set(inspect.signature(mode.__init__).parameters) <= known


def test_a_script_of_brevitas_moves_over(model) -> None:
    habits = solved(
        model,
        group_of_parallel_layers=[["left", "right"]],
        inplace=True,
        create_weight_orig=False,
        use_quant_activations=True,
        return_forward_output=False,
        act_order=True,
        max_accumulator_bit_width=11,
        max_accumulator_tile_size=6,
    )
    ours = solved(model, accumulator_bit_width=11, accumulator_tile_size=6, act_order=True)
    assert same(habits, ours)
    assert not same(habits, solved(model, act_order=True))


@pytest.mark.parametrize("name", [*_FIXED, *_REFUSED])
def test_what_has_no_meaning_is_refused_by_name(name, model) -> None:
    value = not _FIXED[name][0] if name in _FIXED else 1
    with pytest.raises(InvalidOption, match=rf"axe_gpfq_mode takes no {name}.*[;:] ") as refusal:
        axe_gpfq_mode(model, **{name: value})
    assert str(refusal.value).count(". ") == 0  # one sentence


def test_an_unknown_keyword_is_an_error_of_python(model) -> None:
    with pytest.raises(TypeError, match=re.escape("axe_mode() got an unexpected keyword argument")):
        axe_mode(model, accumulator_bits=12)


@pytest.mark.parametrize("second", [12, [["left", "right"]]])
def test_a_second_positional_argument_is_told_its_keyword(second, model) -> None:
    with pytest.raises(InvalidOption, match=r"accumulator_bit_width=16; give .* its keyword"):
        axe_qronos_mode(model, second)


def test_one_width_under_two_names_is_refused(model) -> None:
    with pytest.raises(InvalidOption, match="give one of the two"):
        axe_gptq_mode(model, accumulator_bit_width=12, max_accumulator_bit_width=12)
    axe_gptq_mode(model, accumulator_bit_width=12, max_accumulator_bit_width=None)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([["left", "last"]], "'left' with 'last', which reads another tensor"),
        ([["left", "middle"]], "'middle', which is no layer"),
        (["left"], "list of lists"),
        ("left", "list of lists"),
    ],
)
def test_groups_that_cannot_be_solved_together_are_refused(groups, words, model) -> None:
    with pytest.raises(InvalidOption, match=words):
        solved(model, group_of_parallel_layers=groups)


def test_a_mode_does_not_take_the_solver_of_another(model) -> None:
    with pytest.raises(InvalidOption, match="solves by gpfq, not by gptq"):
        axe_gpfq_mode(model, solver="gptq")
    assert same(solved(model, mode=axe_mode, solver="gpfq"), solved(model, mode=axe_gpfq_mode))
