"""Bits of cached keys and values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.methods.caches.kv_cache import KvCache, kv_cache, rounded, simulated_cache
from brevitas_axe.model.layers import Layer
from brevitas_axe.registry import method
from tests.run.tiny import batches, tiny


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


def test_the_allocator_is_an_option() -> None:
    model, data = amplified(), batches("llama")
    equal = method("caches", "kv_cache:allocator=uniform,bits=2;4")
    assert set(equal(model, data, mean_bits=3.5).values()) == {2}
    with pytest.raises(InvalidOption, match="'nobody' is not registered"):
        method("caches", "kv_cache:allocator=nobody")(model, data, mean_bits=4)


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


class Cached(nn.Module):
    """A block with keys and values, and parts that behave otherwise in training."""

    def __init__(self) -> None:
        super().__init__()
        self.key_proj, self.value_proj = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(self.norm(self.key_proj(x) * self.value_proj(x)))


class Stacked(nn.Module):
    def __init__(self, block: type[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([block(), block()])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_a_model_in_training_mode_is_judged_as_it_will_run_and_left_as_it_is() -> None:
    torch.manual_seed(0)
    model, data = Stacked(Cached), [torch.randn(16, 4)]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = kv_cache(model, data, mean_bits=3, metric="mse")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert found == kv_cache(model.eval(), data, mean_bits=3, metric="mse")


def test_half_precision_vectors_wider_than_their_type_stay_finite() -> None:
    x = torch.tensor([[-60000.0, 60000.0, 1.0]], dtype=torch.half)
    y = rounded(x, 4)
    assert y.dtype == x.dtype
    assert (y - x).abs().max() <= 0.5001 * 120000 / 15


class TwoKeys(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.k_proj, self.cross_k_proj = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.k_proj(x) + self.cross_k_proj(x)


def test_keys_without_values_are_no_cache() -> None:
    with pytest.raises(UnsupportedLayer, match=r"block 'layers\.0' has no key and value"):
        kv_cache(Stacked(TwoKeys), [torch.randn(2, 4)], mean_bits=4, metric="mse")


@pytest.mark.parametrize("bits", [(), (4, 4), (0, 4), (2.5,), (True,)])
def test_widths_that_are_none_are_refused(bits) -> None:
    with pytest.raises(InvalidOption, match=r"a cache needs at least one width|at least 1, not"):
        KvCache(bits=bits)


def test_a_simulation_that_cannot_be_leaves_no_hook() -> None:
    model = Stacked(Cached)
    for bits, says in (({"layers.0": 4, "layers.7": 4}, "no block 'layers.7'"),
                       ({"layers.0": 4, "layers.1": 0}, "at least 1, not 0")):  # fmt: skip
        with pytest.raises(InvalidOption, match=says), simulated_cache(model, bits):
            pass
        assert not any(m._forward_hooks for m in model.modules())


def test_bad_input_is_said() -> None:
    with pytest.raises(InvalidOption, match="below the fewest, 4"):
        KvCache(bits=(4, 8))(amplified(), batches("llama"), mean_bits=3)
    with pytest.raises(UnsupportedLayer, match="split a fused projection"):
        kv_cache(tiny("gpt2").eval(), batches("gpt2"), mean_bits=4)
