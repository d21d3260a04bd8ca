"""Which quantizer feeds which layer, and setting its bits."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas.export import export_qonnx
from torch import nn

from brevitas_axe.errors import InvalidPlan
from brevitas_axe.model.apply.activations import (
    activation_quantizers,
    input_sources,
    set_bits,
    set_input_bits,
    tied_layers,
)
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.plan import LayerPrecision, Plan
from tests.model.test_prepare import Residual, X


class Fork(nn.Module):
    """Two layers read one activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Linear(192, 8), nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x.flatten(1)).relu()
        return self.left(x) + self.right(x)


@pytest.fixture
def fork():
    torch.manual_seed(0)
    return to_brevitas(Fork().eval(), as_batches([X]))


def test_layers_that_read_one_activation_are_tied(fork) -> None:
    sources = input_sources(fork, (X[:1],))
    assert sources["left"] == sources["right"] != sources["stem"]
    assert tied_layers(sources) == (("left", "right"),)


def test_bits_are_told_as_they_are_behind_an_export_of_brevitas(fork, tmp_path) -> None:
    export_qonnx(fork, args=(X[:1],), export_path=str(tmp_path / "m.onnx"), dynamo=False)
    told = {}
    for name, proxies in activation_quantizers(fork).items():
        set_bits(proxies, 3)
        told |= {name: {int(proxy.bit_width()) for proxy in proxies}}
    assert told
    assert all(bits == {3} for bits in told.values())


def test_branches_that_share_a_scale_change_together() -> None:
    model = to_brevitas(Residual().eval(), as_batches([X]))
    sources = input_sources(model, (X[:1],))
    assert set(sources) == {"stem", "body", "head"}
    assert all(len(found) == 1 for found in sources.values())


def test_quantizers_are_tried_on_one_sample(fork) -> None:
    sizes = []
    fork.stem.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[0]))
    sources = input_sources(fork, (X,))
    assert sources == input_sources(fork, (X[:1],))
    assert sizes[0] == len(X) > 1
    assert set(sizes[1:]) == {1}


class Insistent(Fork):
    """Knows the size of its batch by heart."""

    def forward(self, x):
        return super().forward(x.view(len(X), -1))


def test_a_forward_that_insists_on_its_batch_gets_it(fork) -> None:
    torch.manual_seed(0)
    insistent = to_brevitas(Insistent().eval(), as_batches([X]))
    assert input_sources(insistent, (X,)) == input_sources(fork, (X,))


def test_ties_join_through_each_other() -> None:
    sources = {"a": ("p",), "b": ("q",), "c": ("r",), "d": ("q", "p")}
    assert tied_layers(sources) == (("a", "b", "d"),)


def test_planned_bits_arrive(fork) -> None:
    plan = Plan({name: LayerPrecision(input=3) for name in ("left", "right")})
    set_input_bits(fork, plan, (X[:1],))
    calls = observe_inputs(fork, find_layers(fork), (X,))
    assert {name: reach[0].high for name, reach in calls.items() if reach[0]} == {
        "stem": 255,
        "left": 7,
        "right": 7,
    }


def test_disagreement_on_one_activation_is_refused(fork) -> None:
    before = copy.deepcopy(fork)
    plan = Plan({"left": LayerPrecision(input=3), "right": LayerPrecision(input=4)})
    with pytest.raises(InvalidPlan, match="'left' and 'right' read the same activation"):
        set_input_bits(fork, plan, (X[:1],))
    with torch.no_grad():
        assert torch.equal(fork(X), before(X))
