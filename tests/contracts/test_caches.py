"""What every registered method for caches promises, on a small language model."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.errors import EmptyCalibration, InvalidOption
from brevitas_axe.methods.caches import CacheBits
from brevitas_axe.model.stack import find_blocks
from brevitas_axe.registry import methods
from tests.run.tiny import batches, tiny

CACHES: dict[str, CacheBits] = methods("caches")
every = pytest.mark.parametrize("name", CACHES)


def test_all_are_there() -> None:
    assert "kv_cache" in CACHES


@every
@pytest.mark.parametrize("mean", [3, 4.5])
def test_every_block_gets_bits_and_the_mean_is_met(name, mean) -> None:
    model = tiny("llama").eval()
    found = CACHES[name](model, batches("llama"), mean)
    assert list(found) == list(find_blocks(model))
    assert all(type(bits) is int and bits >= 1 for bits in found.values())
    assert sum(found.values()) <= mean * len(found)


@every
def test_the_model_is_left_bit_identical_and_results_repeat(name) -> None:
    model, data = tiny("llama").train(), batches("llama")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    first = CACHES[name](model, data, 4)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert CACHES[name](model, data, 4) == first


@every
def test_what_cannot_be_is_said(name) -> None:
    model, data = tiny("llama").eval(), batches("llama")
    with pytest.raises(InvalidOption, match=r"0\.5"):
        CACHES[name](model, data, 0.5)
    with pytest.raises(EmptyCalibration):
        CACHES[name](model, [], 4)
    with pytest.raises(InvalidOption, match="nowhere"):
        CACHES[name](model, data, 4, stack="nowhere")


@every
def test_facts_are_of_caches(name) -> None:
    assert CACHES[name].facts.kind == "KV"
