"""A layer that consists of branches, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.branches import BranchedLinear, Part, branch_plan, branched_layers
from brevitas_axe.model.layers import Layer
from brevitas_axe.plan import LayerPrecision, Plan

WHOLE = nn.Linear(6, 4)


def part(columns: list[int], rows: list[int] | None = None, **options) -> Part:
    """The weights of WHOLE at some columns and rows."""
    given = slice(None) if rows is None else rows
    weight = WHOLE.weight.detach()[given][:, columns]
    linear = nn.Linear(len(columns), len(weight), bias=False)
    linear.weight.data = weight.clone()
    places = None if rows is None else torch.tensor(rows)
    return Part(linear, torch.tensor(columns), places, **options)


def test_branches_are_added_on_columns_in_their_own_order() -> None:
    layer = BranchedLinear(6, 4, {"low": part([5, 0, 2]), "high": part([1, 4, 3])})
    x = torch.randn(2, 3, 6)
    torch.testing.assert_close(layer(input=x), x @ WHOLE.weight.T)
    assert layer.adds
    assert torch.equal(layer.inputs_of("low", x), x[..., [5, 0, 2]])


def test_branches_may_share_columns() -> None:
    layer = BranchedLinear(6, 4, {"one": part([0, 1]), "two": part([1, 0])})
    x = torch.randn(6)
    torch.testing.assert_close(layer(x), 2 * x[:2] @ WHOLE.weight[:, :2].T)


def test_branches_with_rows_are_joined() -> None:
    everything = list(range(6))
    layer = BranchedLinear(6, 4, {"a": part(everything, [3, 0]), "b": part(everything, [1, 2])})
    x = torch.randn(5, 6)
    torch.testing.assert_close(layer(x), x @ WHOLE.weight.T)
    assert not layer.adds


def test_columns_are_kept_with_the_weights() -> None:
    one = BranchedLinear(6, 4, {"low": part([5, 0, 2]), "high": part([1, 4, 3])})
    other = BranchedLinear(6, 4, {"low": part([0, 1, 2]), "high": part([3, 4, 5])})
    other.load_state_dict(one.state_dict())
    x = torch.randn(6)
    assert torch.equal(one(x), other(x))


@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ({}, "at least one branch"),
        (
            {"a": Part(nn.Linear(1, 4), torch.arange(0))},
            "columns of branch 'a' must be some of the 6",
        ),
        ({"a": part([0]), "b": Part(nn.Linear(1, 4), torch.tensor([6]))}, "columns of branch 'b'"),
        ({"a": Part(nn.Linear(2, 4), torch.tensor([1, 1]))}, "each of them once"),
        ({"a": part([0], [0, 1]), "b": part([1])}, "all of them must"),
        ({"a": part([0], [0, 1]), "b": part([1], [1, 2])}, "each of the 4 outputs once"),
    ],
)
def test_what_is_no_layer_is_said(parts: dict, what: str) -> None:
    with pytest.raises(InvalidOption, match=what):
        BranchedLinear(6, 4, parts)


def test_a_plan_of_layers_becomes_one_of_branches() -> None:
    narrow, wide = LayerPrecision(weight=2), LayerPrecision(weight=8)
    layer = BranchedLinear(
        6, 4, {"low": part([0, 1], precision=narrow), "high": part([2, 3, 4, 5], precision=wide)}
    )
    model: Layer = nn.Sequential(layer, nn.Linear(4, 2))
    assert list(branched_layers(model)) == ["0"]
    plan = Plan({"0": LayerPrecision(weight=4), "1": LayerPrecision(weight=5)})
    assert branch_plan(model, plan).layers == {
        "0.low": narrow,
        "0.high": wide,
        "1": LayerPrecision(weight=5),
    }
    assert branch_plan(layer, Plan({"": LayerPrecision(weight=4)})).layers == {
        "low": narrow,
        "high": wide,
    }
