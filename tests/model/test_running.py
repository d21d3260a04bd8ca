"""Watching a forward: hooks that are gone afterwards, and who gives and reads each tensor."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.quant import Int8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.model.running import first_input, float_twin, flow, hooked, with_first_input

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """A norm read by three layers and a residual sum; one layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.twice = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        mixed = self.query(x) * self.key(x) + self.value(input=x)
        return self.twice(self.twice(mixed)) + x


def watched(model: nn.Module) -> dict[str, nn.Module]:
    return dict(model.named_children())


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_flow_tells_givers_readers_and_shared_inputs() -> None:
    model = Attention().eval()
    found = flow(model, watched(model), ((X,), {}))
    assert found.readers("norm") == ("query", "key", "value")
    assert [found.giver(n) for n in ("norm", "query", "value")] == [None, "norm", "norm"]
    assert found.same_input("key") == ("query", "key", "value")
    # The first call reads a sum, the second what the first gave.
    assert found.givers["twice"] == (None, "twice")
    assert found.giver("twice") is None
    assert found.readers("twice") == ("twice",)
    assert found.same_input("twice") == ("twice",)
    assert found.giver("unused") is None
    assert found.same_input("unused") == ("unused",)
    assert hooks(model) == 0


def test_a_tensor_changed_in_place_comes_from_nobody() -> None:
    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.third = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y) + self.third(y.relu_())

    model = Changing().eval()
    found = flow(model, watched(model), ((X,), {}))
    assert found.giver("second") == "first"
    assert found.giver("third") is None
    assert found.same_input("second") == ("second",)


def test_hooks_may_change_arguments_and_outputs() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)).eval()
    calls: list[str] = []

    def halve(name, module, args, kwargs):
        calls.append(name)
        return with_first_input(args, kwargs, first_input(args, kwargs) / 2)

    def negate(name, module, args, kwargs, output):
        assert module is model[int(name)]
        return -output

    with torch.no_grad():
        with hooked({"0": model[0]}, halve), hooked({"1": model[1]}, after=negate):
            changed = model(X)
        torch.testing.assert_close(changed, -model(X / 2))
    assert calls == ["0"]
    assert with_first_input((), {"input": 1, "more": 2}, 3) == ((), {"input": 3, "more": 2})


def test_hooks_are_gone_after_an_exception_too() -> None:
    model = Attention()

    def fail(name, *call):
        raise KeyError(name)

    inner = hooked({"query": model.query}, before=fail, after=fail)
    with pytest.raises(KeyError, match="norm"), hooked(watched(model), after=fail), inner:
        model(X)
    assert hooks(model) == 0


def test_a_copy_made_inside_shares_what_the_hooks_write_to() -> None:
    model, seen = Attention(), []

    def note(name, *call) -> None:
        seen.append(name)

    with hooked({"query": model.query}, before=note):
        copy.deepcopy(model)(X)
    assert seen == ["query"]


def test_the_float_twin_computes_with_the_weights_themselves() -> None:
    options = {"weight_quant": Int8WeightPerChannelFloatAXE, "input_quant": Int8ActPerTensorFloat}
    model = nn.Sequential(qnn.QuantLinear(8, 3, True, **options, weight_bit_width=2))
    with torch.no_grad(), calibration_mode(model):
        model(X)
    model.eval()
    with torch.no_grad():
        wanted = nn.functional.linear(X, model[0].weight, model[0].bias)
        assert torch.equal(float_twin(model)(X), wanted)
        assert not torch.allclose(model(X), wanted, atol=1e-2)
