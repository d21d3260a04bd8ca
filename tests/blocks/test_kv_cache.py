"""Bits of cached keys and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.blocks import kv_cache, simulated_cache
from brevitas_axe.blocks.kv_cache import KvCache, rounded
from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.layers import Layer
from tests.blocks.tiny import batches, tiny


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 8))
def test_rounding_has_so_many_levels_and_is_near(seed, bits) -> None:
    x = torch.randn(3, 500, generator=torch.Generator().manual_seed(seed))
    y = rounded(x, bits)
    step = (x.amax(1) - x.amin(1)) / (2**bits - 1)
    assert all(len(row.unique()) <= 2**bits for row in y)
    assert ((y - x).abs().amax(1) <= 0.5001 * step).all()
    assert torch.equal(rounded(torch.ones(2, 4), bits), torch.ones(2, 4))


def amplified() -> torch.nn.Module:
    """The second block's values count far more than the first one's."""
    model = tiny("llama").eval()
    for index, gain in enumerate((0.1, 10.0)):
        projection: Layer = model.get_submodule(f"model.layers.{index}.self_attn.v_proj")
        projection.weight.data *= gain
    return model


def test_the_block_that_counts_gets_more_bits_under_the_mean() -> None:
    model, data = amplified(), batches("llama")
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = kv_cache(model, data, mean_bits=4)
    first, second = found.values()
    assert list(found) == ["model.layers.0", "model.layers.1"]
    assert first < second
    assert first + second <= 8
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


def test_never_worse_than_equal_bits() -> None:
    model, data = amplified(), batches("llama")
    with torch.no_grad():
        real = [torch.log_softmax(model(x).logits, -1) for x in data]

        def lost(bits: dict[str, int]) -> float:
            with simulated_cache(model, bits):
                logs = [torch.log_softmax(model(x).logits, -1) for x in data]
            return sum(float((r.exp() * (r - y)).sum()) for r, y in zip(real, logs, strict=True))

        for mean in (2, 3, 4.5):
            found = kv_cache(model, data, mean_bits=mean)
            assert lost(found) <= lost(dict.fromkeys(found, int(mean))) * (1 + 1e-6)


def test_bad_input_is_said() -> None:
    with pytest.raises(InvalidOption, match="below the fewest, 4"):
        KvCache(bits=(4, 8))(amplified(), batches("llama"), mean_bits=3)
    with pytest.raises(UnsupportedLayer, match="split a fused projection"):
        kv_cache(tiny("gpt2").eval(), batches("gpt2"), mean_bits=4)
