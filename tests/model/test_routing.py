"""Which modules are experts, and which tokens they get."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from brevitas_axe.model.experts import RoutedExperts, Routing, experts_to_linears
from brevitas_axe.model.routing import (
    LEAST_TOKENS,
    calibrating_experts,
    called,
    find_experts,
    reaching_experts,
    routers,
    usage,
)
from brevitas_axe.model.running import hooked
from tests.run.moe import by_hand, fused, tokens, vectors

PLACE = "model.layers.0.mlp.experts"


def test_experts_and_their_router_are_found_by_structure() -> None:
    model = by_hand()
    found = find_experts(model.get_submodule("blocks.0"))
    assert [(e.caller, e.members, e.paired) for e in found] == [
        ("", tuple(f"experts.{i}" for i in range(4)), False)
    ]
    assert routers(model.get_submodule("blocks.0"), found) == ["router"]
    model = fused("mixtral")
    experts_to_linears(model)
    [each] = [e for e in find_experts(model) if e.paired]
    assert each.names() == tuple(f"{PLACE}.{i}" for i in range(4))
    assert routers(model, [each]) == ["model.layers.0.mlp.gate"]


@torch.no_grad()
def test_usage_is_the_router_s_tally() -> None:
    model, data = fused("mixtral"), tokens()
    experts_to_linears(model)
    chosen = []
    gate = {"gate": model.get_submodule("model.layers.0.mlp.gate")}
    with hooked(gate, after=lambda name, module, args, kwargs, output: chosen.append(output[2])):
        found = usage(model, find_experts(model), lambda: [model(x) for x in data])
    tally = torch.cat(chosen).flatten().bincount(minlength=4).tolist()
    assert found == {PLACE: {f"{PLACE}.{i}": count for i, count in enumerate(tally)}}
    plain = nn.Sequential(nn.ModuleDict({"list": nn.ModuleList([nn.Linear(4, 4)] * 2)}))
    assert usage(plain, find_experts(plain), lambda: None) == {}


class InTurn(nn.Module):
    """Layers in a list that all read everything."""

    def __init__(self) -> None:
        super().__init__()
        self.list = nn.ModuleList(nn.Linear(16, 16) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.list:
            x = layer(x)
        return x


@torch.no_grad()
def test_layers_in_turn_are_no_experts() -> None:
    model, [x] = InTurn(), vectors(1)
    with calibrating_experts(model, lambda: model(x)) as found:
        assert found.experts == ()


@torch.no_grad()
def test_an_expert_without_tokens_gets_those_of_the_others() -> None:
    model, data = by_hand(unused=2), vectors()
    block, names = model.get_submodule("blocks.0"), [f"experts.{i}" for i in range(4)]
    rows: dict[str, int] = {}

    def count(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        rows[name] = rows.get(name, 0) + len(args[0])

    parts = {name: block.get_submodule(name) for name in names}
    before = block(data[0])
    with calibrating_experts(block, lambda: [block(x) for x in data]) as found:
        assert found.shared == ("experts.2",)
        assert found.unpaired == tuple(names)
        assert "all tokens" in found.facts_of("experts.2.up")["statistics"]
        assert "quantized inputs" in found.facts_of("experts.1.up")["statistics"]
        assert found.facts_of("first") == {}
        with hooked(parts, before=count):
            for x in data:
                block(x)
    assert rows["experts.2"] == sum(rows[n] for n in names if n != "experts.2") == 3 * 96
    assert torch.equal(block(data[0]), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    rows.clear()
    with called(block, find_experts(block)), hooked(parts, before=count):
        block(data[0][:1, :2])
    assert set(rows) == set(names)


class Bare(nn.Module):
    """Experts that are layers; the last one gets nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if bool((x > 100).any()):
            raise ValueError
        half = len(x) // 2
        return torch.cat([self.experts[0](x[:half]), self.experts[1](x[half:])])


@torch.no_grad()
def test_experts_that_are_layers_may_be_exchanged_meanwhile() -> None:
    model, x = Bare(), torch.randn(80, 4)
    given: list[torch.Tensor] = []
    with calibrating_experts(model, lambda: model(x)) as found:
        assert found.shared == ("experts.2",)
        for number in range(3):
            model.experts[number] = nn.Linear(4, 4)
        last: Any = model.experts[2]
        handle = last.register_forward_pre_hook(lambda module, args: given.append(args[0]))
        model(x)
        handle.remove()
        with pytest.raises(ValueError, match=r"^$"):
            model(x + 1000)
    assert torch.equal(torch.cat(given), x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_a_sample_reaches_all_experts_where_it_has_to() -> None:
    model, data = by_hand(unused=2), vectors()
    parts = {f"blocks.{b}.experts.{i}": model.get_submodule(f"blocks.{b}.experts.{i}")
             for b in (0, 1) for i in range(4)}  # fmt: skip
    seen: set[str] = set()

    def note(name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.add(name)

    one = data[0][:1, :2]
    with hooked(parts, before=note):
        model(one)
        assert len(seen) < 8
        with reaching_experts(model, [((one,), {}), *(((x,), {}) for x in data)]):
            copy.deepcopy(model)(one)
    assert seen == {*parts}


@torch.no_grad()
def test_a_copy_follows_the_routing_of_the_quantized_model() -> None:
    model, [x] = fused("mixtral"), tokens(1)
    experts_to_linears(model)
    experts: Any = model.get_submodule(PLACE)
    assert isinstance(experts, RoutedExperts)
    with calibrating_experts(model, lambda: model(x)) as found:
        assert found.unpaired == ()
        assert copy.deepcopy(experts).routing is experts.routing
    assert experts.routing is None
    routing, one, two = Routing(), torch.zeros(3, 2), torch.ones(3, 2)
    assert routing.followed(two, leads=False) is two  # nothing to follow
    assert routing.followed(one, leads=True) is one
    assert routing.followed(two, leads=False) is one
    assert routing.followed(two[:1], leads=False).shape == (1, 2)
    assert LEAST_TOKENS > 1
