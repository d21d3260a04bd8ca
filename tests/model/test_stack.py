from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.model.stack import (
    Alone,
    find_blocks,
    first_sample,
    left_in_float,
    record_calls,
    restored_on_error,
    to_linears,
    with_hidden,
)
from tests.run.tiny import LAYERS, batches, tiny

STACKS = {
    "llama": "model.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "bert": "encoder.layer",
    "vit": "layers",
}


@pytest.mark.parametrize("kind", STACKS)
def test_every_family_has_its_stack(kind: str) -> None:
    blocks = find_blocks(tiny(kind))
    assert list(blocks) == [f"{STACKS[kind]}.{index}" for index in range(2)]
    for block in blocks.values():
        to_linears(block)
        assert sum(isinstance(m, nn.Linear) for m in block.modules()) == LAYERS[kind]


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))


def test_experts_belong_to_their_block() -> None:
    model = nn.ModuleDict({"layers": nn.ModuleList(Experts() for _ in range(2))})
    assert list(find_blocks(model)) == ["layers.0", "layers.1"]


def test_several_stacks_are_told_apart_by_name() -> None:
    stacks = {key: nn.ModuleList([Experts()]) for key in ("encoder", "decoder")}
    model = nn.ModuleDict(stacks)
    with pytest.raises(InvalidOption, match=r"encoder, decoder"):
        find_blocks(model)
    assert list(find_blocks(model, "decoder")) == ["decoder.0"]
    with pytest.raises(InvalidOption, match="'tail' is no stack"):
        find_blocks(model, "tail")


def test_models_without_blocks_are_sent_elsewhere() -> None:
    with pytest.raises(InvalidOption, match=r"brevitas_axe\.quantize"):
        find_blocks(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)))


def test_shared_blocks_are_refused() -> None:
    block = Experts()
    with pytest.raises(UnsupportedLayer, match="share one module"):
        find_blocks(nn.ModuleDict({"layers": nn.ModuleList([block, block])}))


def test_conv1d_becomes_the_same_linear() -> None:
    model = tiny("gpt2").eval()
    x = batches("gpt2")[0]
    with torch.no_grad():
        before = model(x).logits
        to_linears(model)
        after = model(x).logits
    torch.testing.assert_close(after, before)
    assert left_in_float(model) == [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]


@pytest.mark.parametrize("kind", STACKS)
def test_blocks_on_their_own_give_what_the_model_gives(kind: str) -> None:
    model, data = tiny(kind).eval(), batches(kind)
    blocks, outputs = find_blocks(model), []
    last = list(blocks.values())[-1]
    with torch.no_grad():
        hidden, calls = record_calls(model, blocks, [((x,), {}) for x in data])
        for (name, block), call in zip(blocks.items(), calls, strict=True):
            alone = Alone(name, block)
            pairs = [with_hidden(c, h) for c, h in zip(call, hidden, strict=True)]
            hidden = [alone(pair, pair) for pair in pairs]
        handle = last.register_forward_hook(lambda _, args, output: outputs.append(output))
        for x in data:
            model(x)
    handle.remove()
    for mine, theirs in zip(hidden, outputs, strict=True):
        assert torch.equal(mine, theirs)


def test_names_of_a_block_alone_are_those_in_the_model() -> None:
    model = tiny("llama")
    name, block = next(iter(find_blocks(model).items()))
    names = {n for n, _ in Alone(name, block).named_modules() if n.startswith(name)}
    assert names == {n for n, _ in model.named_modules() if n.startswith(name)}


@pytest.mark.parametrize("kind", STACKS)
def test_the_first_sample_of_a_call_is_a_call(kind: str) -> None:
    model, data = tiny(kind).eval(), batches(kind)
    (name, block), *_ = find_blocks(model).items()
    kwargs = {} if kind == "vit" else {"attention_mask": torch.ones_like(data[0])}
    if kwargs:
        kwargs["attention_mask"][:, -3:] = 0
    with torch.no_grad():
        hidden, calls = record_calls(model, {name: block}, [((data[0],), kwargs)])
        alone, whole = Alone(name, block), with_hidden(calls[0][0], hidden[0])
        one = first_sample(whole)
        torch.testing.assert_close(alone(one, one), alone(whole, whole)[:1])


class Looped(nn.Module):
    """Calls its blocks twice."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(2))

    def forward(self, x):
        for block in [*self.blocks[:1], *self.blocks]:
            x = block(x)
        return x


def test_blocks_called_more_than_once_are_refused() -> None:
    model = Looped()
    with pytest.raises(UnsupportedLayer, match="exactly once"):
        record_calls(model, find_blocks(model), [((torch.ones(1, 4),), {})])
    assert not model.blocks[0]._forward_pre_hooks


class Chain(nn.Module):
    """Three blocks with something between them."""

    def __init__(self, between) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4)) for _ in range(3))
        self.between = between

    def forward(self, x):
        for block in self.blocks:
            x = self.between(block(x))
        return x


@pytest.mark.parametrize(
    "between",
    [lambda h: h * 10, lambda h: h.mul_(10), lambda h: h[:1], torch.Tensor.half],
    ids=["scaled", "scaled in place", "shortened", "of another type"],
)
def test_hidden_states_changed_between_blocks_are_refused(between) -> None:
    model = Chain(between)
    with pytest.raises(UnsupportedLayer, match=r"blocks\.1' does not get.*blocks\.0' gives.*move"):
        record_calls(model, find_blocks(model), [((torch.ones(2, 4),), {})])
    assert not any(block._forward_hooks or block._forward_pre_hooks for block in model.blocks)


@pytest.mark.parametrize("value", [1.0, torch.nan])
def test_equal_hidden_states_are_accepted(value: float) -> None:
    model = Chain(lambda h: h.clone())
    hidden, calls = record_calls(model, find_blocks(model), [((torch.full((2, 4), value),), {})])
    assert (len(hidden), len(calls)) == (1, 3)


def test_outputs_that_hold_no_hidden_states_are_refused() -> None:
    model = Chain(lambda h: h["hidden"])
    for block in model.blocks:
        block.register_forward_hook(lambda _, args, output: {"hidden": output})
    with pytest.raises(UnsupportedLayer, match=r"blocks\.0' gives a dict"):
        record_calls(model, find_blocks(model), [((torch.ones(2, 4),), {})])


def test_an_error_gives_a_module_back_as_it_was() -> None:
    model = Experts()
    shared = model.experts[0][0].weight
    model.experts[1][0].weight = shared
    before, names = copy.deepcopy(model.state_dict()), [name for name, _ in model.named_modules()]

    def spoil() -> None:
        shared.data *= 2
        model.experts[2][0] = nn.Sequential(nn.Linear(4, 4))
        model.experts[1][0].weight = nn.Parameter(torch.zeros(4, 4))
        raise KeyError

    with pytest.raises(KeyError), restored_on_error(model):
        spoil()
    assert [name for name, _ in model.named_modules()] == names
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.experts[0][0].weight is model.experts[1][0].weight is shared
