"""The weight proxy holds the budget in every forward, whatever happens to the layer."""

from __future__ import annotations

import copy

import pytest
import torch
from brevitas import config
from brevitas import nn as qnn
from brevitas.quant import (
    Int8ActPerTensorFloat,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    Uint8ActPerTensorFloat,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from brevitas_axe.accumulator import InputRange, fits
from brevitas_axe.errors import (
    AccumulatorTooNarrow,
    InvalidTile,
    MissingInputQuantizer,
    UnsupportedLayer,
)
from brevitas_axe.model.layers import Layer, integer_weight, unroll_weight
from brevitas_axe.model.quantizers import (
    AccumulatorAware,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)

QUANTIZERS = [
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFloatAXE,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerTensorFixedPointAXE,
]
LAYERS = {
    "linear": (lambda **k: qnn.QuantLinear(37, 5, **k), (3, 37)),
    "conv": (lambda **k: qnn.QuantConv2d(4, 6, 3, groups=2, padding=1, **k), (2, 4, 5, 5)),
    "depthwise": (lambda **k: qnn.QuantConv1d(3, 3, 9, groups=3, **k), (2, 3, 12)),
    "transposed": (lambda **k: qnn.QuantConvTranspose2d(4, 6, 3, stride=2, **k), (2, 4, 4, 4)),
}


def linear(columns=64, rows=8, bits: int | None = 12, seed=0, **options) -> Layer:
    """A layer that its budget binds, in evaluation mode."""
    torch.manual_seed(seed)
    kind = {"input_quant": Uint8ActPerTensorFloat, "weight_quant": Int8WeightPerChannelFloatAXE}
    options = {**kind, "weight_accumulator_bit_width": bits, "bias": False, **options}
    layer = qnn.QuantLinear(columns, rows, **options)
    layer.input_quant(torch.rand(16, columns))  # its first batch sets an activation's scale
    return layer.eval()


def integers(layer: Layer) -> torch.Tensor:
    return unroll_weight(layer, integer_weight("layer", layer)[0]).flatten(0, 1)


def holds(layer: Layer) -> bool:
    proxy = layer.weight_quant
    reach = proxy.input_range
    return bool(
        fits(
            integers(layer).numpy(),
            reach.low,
            reach.high,
            proxy.accumulator_bit_width,
            proxy.accumulator_tile_size,
        ).all()
    )


@pytest.mark.filterwarnings("ignore:Computing zero point of output accumulator:UserWarning")
@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(LAYERS)),
    st.sampled_from(QUANTIZERS),
    st.sampled_from([Int8ActPerTensorFloat, Uint8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat]),
    st.integers(5, 24),
    st.sampled_from([None, 1, 5, 16, 1000]),
    st.integers(2, 8),
    st.integers(1, 8),
    st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    st.integers(0, 99),
)
def test_every_layer_holds_its_budget(
    kind, quantizer, act, bits, tile, weight_bits, input_bits, dtype, seed
):
    torch.manual_seed(seed)
    build, shape = LAYERS[kind]
    layer = build(
        weight_quant=quantizer,
        weight_bit_width=weight_bits,
        weight_accumulator_bit_width=bits,
        weight_accumulator_tile_size=tile,
        input_quant=act,
        input_bit_width=max(input_bits, 2),
    ).to(dtype)
    with torch.no_grad():
        layer.train()(torch.randn(shape).to(dtype))  # the activation quantizer's first batch
        layer.eval()(torch.randn(shape).to(dtype))
    assert holds(layer)


def test_rows_inside_the_budget_pass_bit_for_bit():
    layer = linear(bits=14, weight_bit_width=4)
    layer.weight.data[::2, 4:] = 0
    layer(torch.rand(2, 64))
    held, plain = layer.quant_weight().value, layer.weight_quant.tensor_quant(layer.weight)[0]
    assert torch.equal(plain[::2], held[::2])
    assert not (plain[1::2] == held[1::2]).all(1).any()


def test_held_weights_are_a_fixed_point():
    layer = linear()
    layer(torch.rand(2, 64))
    before = integers(layer)
    layer.weight.data = layer.quant_weight().value.detach()
    assert torch.equal(integers(layer), before)


def test_each_row_scale_is_independent_of_the_others():
    layer = linear()
    layer(torch.rand(2, 64))
    before = integers(layer)
    layer.weight.data[0] *= 5
    assert torch.equal(integers(layer)[1:], before[1:])


@pytest.mark.parametrize("strict", [True, False])
def test_a_fresh_module_loads_the_same_integers(strict):
    layer = linear()
    layer(torch.rand(2, 64))
    fresh = linear(seed=1)
    fresh.load_state_dict(layer.state_dict(), strict=strict)
    assert fresh.weight_quant.input_range == InputRange(0, 255)
    assert torch.equal(integers(fresh), integers(layer))


def test_a_state_dict_of_another_quantizer_loads():
    plain = qnn.QuantLinear(64, 8, bias=False).state_dict()
    layer = linear(input_quant=None)
    layer.load_state_dict(plain, strict=True)
    assert torch.equal(layer.weight, plain["weight"])


def test_our_state_dict_without_a_buffer_loads_where_brevitas_ignores_missing_keys():
    state = linear().state_dict()
    del state["weight_quant.input_low"]
    with pytest.raises(RuntimeError, match="input_low"):
        linear().load_state_dict(state, strict=True)
    config.IGNORE_MISSING_KEYS, before = True, config.IGNORE_MISSING_KEYS
    try:
        linear().load_state_dict(state)
    finally:
        config.IGNORE_MISSING_KEYS = before


def test_a_deep_copy_holds_the_same_budget_on_its_own():
    layer = linear()
    layer(torch.rand(2, 64))
    twin = copy.deepcopy(layer)
    assert torch.equal(integers(twin), integers(layer))
    twin.weight_quant.accumulator_bit_width = 9
    assert holds(twin)
    assert not torch.equal(integers(twin), integers(layer))


def test_the_widest_of_several_inputs_counts():
    layer = linear(input_quant=None)
    narrow = qnn.QuantIdentity(Uint8ActPerTensorFloat, bit_width=2, return_quant_tensor=True).eval()
    wide = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True).eval()
    x = torch.rand(2, 64)
    layer(narrow(x))
    assert layer.weight_quant.input_range == InputRange(0, 3)
    loose = integers(layer)
    layer(wide(x))
    layer(narrow(x))
    assert layer.weight_quant.input_range == InputRange(-128, 127)
    assert holds(layer)
    assert not torch.equal(integers(layer), loose)


def test_a_cached_weight_does_not_survive_a_wider_input():
    layer = linear(input_quant=None)
    layer.weight_quant.cache_inference_quant_weight = True
    narrow = qnn.QuantIdentity(Uint8ActPerTensorFloat, bit_width=2, return_quant_tensor=True).eval()
    wide = qnn.QuantIdentity(Int8ActPerTensorFloat, return_quant_tensor=True).eval()
    x = torch.rand(2, 64)
    layer(narrow(x))
    layer(wide(x))
    assert holds(layer)


def test_an_unquantized_input_is_refused_until_a_range_is_known():
    layer = linear(input_quant=None)
    with pytest.raises(MissingInputQuantizer, match=r"input of QuantLinear\(8, 64\)"):
        layer(torch.rand(2, 64))
    layer.weight_quant.set_input_range(InputRange(0, 15))
    layer(torch.rand(2, 64))
    assert holds(layer)
    layer.weight_quant.set_input_range(None)
    with pytest.raises(MissingInputQuantizer):
        layer.quant_weight()


def test_without_a_width_or_without_quantization_nothing_is_asked_of_the_input():
    layer = linear(bits=None, input_quant=None)
    layer(torch.rand(2, 64))
    layer.weight_quant.accumulator_bit_width = 8
    layer.weight_quant.disable_quant = True
    x = torch.rand(2, 64)
    assert torch.equal(layer(x), nn.functional.linear(x, layer.weight))


def test_asymmetric_weights_are_refused():
    class Shifted(AccumulatorAware, ShiftedUint8WeightPerTensorFloat):
        pass

    layer = linear(weight_quant=Shifted)
    with pytest.raises(UnsupportedLayer, match="asymmetric weights"):
        layer(torch.rand(2, 64))


@pytest.mark.parametrize("bits", [1, 0, -3, 65, 12.5])
def test_impossible_widths_are_refused_at_once(bits):
    with pytest.raises(AccumulatorTooNarrow):
        linear(bits=bits)


@pytest.mark.parametrize("tile", [0, -1, 2.5])
def test_impossible_tiles_are_refused_at_once(tile):
    with pytest.raises(InvalidTile):
        linear(weight_accumulator_tile_size=tile)


def gradients(layer: Layer) -> tuple[torch.Tensor, torch.Tensor]:
    layer.train()
    generator = torch.Generator().manual_seed(1)
    x, push = torch.rand(4, 64, generator=generator), torch.randn(4, 8, generator=generator)
    (layer(x) * push).sum().backward()
    return layer.weight.grad, layer.weight_quant.tensor_quant.scaling_impl.value.grad


def test_rows_inside_the_budget_get_the_gradient_of_brevitas():
    free = linear(bits=None)  # Brevitas's own path
    for layer in (linear(bits=32), free):
        layer.weight.data[0, :3] *= 3  # beyond the range of the integers
    held = linear(bits=32)
    held.weight.data[0, :3] *= 3
    for ours, brevitas in zip(gradients(held), gradients(free), strict=True):
        assert torch.allclose(ours, brevitas, rtol=1e-4, atol=1e-5)


def test_a_push_that_all_kept_weights_of_a_side_share_moves_none_of_them():
    free, held = gradients(linear(bits=None))[0], linear(bits=10)
    found = gradients(held)[0]
    kept = integers(held)
    for side in (kept > 0, kept < 0):
        assert side.any()
        assert (found * side).sum(1).abs().max() < 1e-4
    assert torch.allclose(found[kept == 0], free[kept == 0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quantizer", QUANTIZERS[:2])
def test_the_scale_of_held_integers_gets_the_integers_as_gradient(quantizer):
    layer = linear(bits=10, weight_quant=quantizer).train()
    x = torch.rand(4, 64)
    layer(x)
    weight = layer.quant_weight()
    push = torch.randn(8, 64, generator=torch.Generator().manual_seed(2))
    (push * weight.value).sum().backward()
    # The parameter is the range, 127 scales.
    expected = (push * integers(layer)).sum(1) / 127
    found = layer.weight_quant.tensor_quant.scaling_impl.value.grad
    expected = expected if found.numel() > 1 else expected.sum()
    assert torch.allclose(found.flatten(), expected.flatten(), rtol=1e-3, atol=1e-4)


def test_training_keeps_the_budget_at_every_step():
    layer = linear(bits=11).train()
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    x, y = torch.rand(16, 64), torch.randn(16, 8)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(layer(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert holds(layer)
    assert losses[-1] < losses[0]
