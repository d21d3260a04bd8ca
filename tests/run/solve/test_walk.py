"""Forwards that sleep in front of layers and go on."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from brevitas_axe.run.solve.walk import SuspendedForward, abandon_all, add_hooks


class Net(nn.Module):
    """Calls `twice` two times and `left` by keyword; skips `rare` unless the input is positive."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice = nn.Identity(), nn.Identity()
        self.rare, self.last = nn.Identity(), nn.Identity()
        self.cleaned = 0

    def forward(self, x):
        try:
            x = self.twice(self.first(x) + 1)
            if x.sum() > 0:
                x = self.rare(x)
            x = self.twice(x + 1)
            return self.last(input=x + 1)
        finally:
            self.cleaned += 1


def hooked(names=("first", "twice", "rare", "last")):
    net = Net()
    handles = add_hooks({name: net.get_submodule(name) for name in names})
    return net, handles


def stops(forward: SuspendedForward, pauses=lambda name: True) -> list[tuple[str, float]]:
    seen = []
    while True:
        forward.advance(pauses)
        if forward.finished:
            return seen
        seen.append((forward.layer, float(forward.layer_input)))


def test_it_stops_at_every_call_with_the_input_that_arrives():
    net, _ = hooked()
    forward = SuspendedForward(net, (torch.tensor(3.0),), {})
    assert stops(forward) == [
        ("first", 3), ("twice", 4), ("rare", 4), ("twice", 5), ("last", 6)
    ]  # fmt: skip
    assert (forward.layer, forward.layer_input, forward.finished) == (None, None, True)
    assert float(forward.output) == 6.0
    forward.advance(lambda name: True)  # nothing happens after the end


def test_each_forward_takes_its_own_path_and_turns_alternate():
    net, _ = hooked()
    pair = [SuspendedForward(net, (torch.tensor(x),), {}) for x in (3.0, -3.0)]
    seen = {0: [], 1: []}
    while not all(forward.finished for forward in pair):
        for index, forward in enumerate(pair):
            forward.advance("last".__ne__)
            seen[index].append(forward.layer)
    assert seen[0][:5] == ["first", "twice", "rare", "twice", None]
    assert seen[1][:4] == ["first", "twice", "twice", None]


def test_what_changes_while_it_sleeps_is_used_when_it_wakes():
    net, _ = hooked(("twice",))
    net.first = nn.Linear(1, 1, bias=False)
    add_hooks({"first": net.first})
    forward = SuspendedForward(net, (torch.ones(1),), {})
    forward.advance(lambda name: True)
    assert forward.layer == "first"
    net.first.weight.data.fill_(7.0)
    forward.advance(lambda name: True)
    assert float(forward.layer_input) == 8.0


def test_exceptions_come_out_where_it_was_advanced():
    net, _ = hooked()
    net.rare.forward = lambda x: 1 / 0
    forward = SuspendedForward(net, (torch.tensor(3.0),), {})
    forward.advance("rare".__eq__)
    with pytest.raises(ZeroDivisionError):
        forward.advance("rare".__eq__)
    assert forward.finished
    assert forward.output is None
    forward.advance("rare".__eq__)  # raised once, not again


def test_abandoning_unwinds_the_model():
    net, handles = hooked()
    forwards = [SuspendedForward(net, (torch.tensor(3.0),), {}) for _ in range(5)]
    for forward in forwards[:4]:
        forward.advance("twice".__eq__)
    abandon_all([*forwards, None])
    assert [forward.finished for forward in forwards] == [True] * 4 + [False]  # never started
    assert net.cleaned == 4
    for handle in handles:
        handle.remove()
    assert float(net(torch.tensor(3.0))) == 6.0


def test_a_model_that_catches_exceptions_cannot_catch_the_unwinding():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()

        def forward(self, x):
            for _ in range(3):
                try:
                    return self.inner(x)
                except Exception:
                    continue

    model = Stubborn()
    add_hooks({"inner": model.inner})
    forward = SuspendedForward(model, (torch.ones(1),), {})
    forward.advance(lambda name: True)
    forward.abandon()
    assert forward.finished


def test_ordinary_forwards_pass_the_hooks():
    net, _ = hooked()
    assert float(net(torch.tensor(3.0))) == 6.0


def test_autocast_and_no_grad_hold_inside_the_forward():
    net, _ = hooked(())
    net.first = nn.Linear(2, 2)
    seen = []
    net.first.register_forward_hook(lambda _, __, out: seen.append((out.dtype, out.requires_grad)))
    net.twice.forward = lambda x: x.sum()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        forward = SuspendedForward(net, (torch.ones(1, 2),), {})
    forward.advance(lambda name: False)
    assert seen == [(torch.bfloat16, False)]


def test_a_forward_that_sleeps_inside_autocast_leaves_the_caller_alone():
    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(2, 2), []

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
                self.seen.append(self.layer(x).dtype)
            self.seen.append(torch.is_autocast_enabled("cpu"))

    model = Inner()
    add_hooks({"layer": model.layer})
    first, second = (SuspendedForward(model, (torch.ones(1, 2),), {}) for _ in range(2))
    with torch.no_grad():
        first.advance(lambda name: True)
        second.advance(lambda name: True)
        assert not torch.is_autocast_enabled("cpu")
        assert not torch.is_grad_enabled()
        first.advance(lambda name: True)
        second.advance(lambda name: True)
        assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert model.seen == [torch.bfloat16, False, torch.bfloat16, False]


def test_a_forward_that_sleeps_inside_a_function_mode_leaves_the_caller_alone():
    class Doubling(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            return 2 * result if func is torch.relu else result

    class Inner(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.seen = nn.Linear(2, 2), []

        def forward(self, x):
            with Doubling():
                self.layer(x)
                self.seen.append(float(torch.relu(torch.ones(()))))
            self.seen.append(float(torch.relu(torch.ones(()))))

    model = Inner()
    add_hooks({"layer": model.layer})
    first, second = (SuspendedForward(model, (torch.ones(1, 2),), {}) for _ in range(2))
    for forward in (first, second, first, second):
        forward.advance(lambda name: True)
        assert torch.relu(torch.ones(())) == 1
    assert model.seen == [2, 1, 2, 1]
