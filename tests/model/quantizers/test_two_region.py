from __future__ import annotations

import pytest
import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.apply.activations import set_bits
from brevitas_axe.model.quantizers.two_region import (
    ONE_REGION,
    Int8TwoRegionActPerTensorFloat,
    fitted,
    integer_range,
    quantized,
    regions,
)


def tail(count: int = 4000, seed: int = 0) -> torch.Tensor:
    """Outputs of a GELU, some of them large."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, generator=generator)
    return torch.nn.functional.gelu(
        torch.where(torch.rand(count, generator=generator) < 0.02, 9 * x, x)
    )


def made(x: torch.Tensor, bits: int = 4) -> qnn.QuantIdentity:
    identity = qnn.QuantIdentity(
        Int8TwoRegionActPerTensorFloat, bit_width=bits, return_quant_tensor=True
    )
    with torch.no_grad(), calibration_mode(identity):
        identity(x)
    return identity.eval()


def test_four_bits_and_one_doubling_end_at_seventeen() -> None:
    assert integer_range(4, 1) == (-4, 17)
    assert integer_range(4, 0) == (-4, 10)
    assert integer_range(4, ONE_REGION) == (-8, 7)
    assert integer_range(8, 4) == (-64, 63 + 16 * 127)


@pytest.mark.parametrize("bits", [3, 4, 6, 8])
@pytest.mark.parametrize("exponent", [0, 1, 4])
def test_the_integers_are_those_of_the_formula(bits: int, exponent: int) -> None:
    step = torch.tensor(0.1)
    x = torch.linspace(-3, 12, 4001) * 2 ** (bits + exponent - 4)
    top = 2 ** (bits - 2) - 1
    a = (x / step).round().clamp(-(2 ** (bits - 2)), top)
    c = ((x - top * step) / (2**exponent * step)).round().clamp(0, 2 ** (bits - 1) - 1)
    found = quantized(x, step, bits, exponent)
    # Both ways to compute x − T differ in the last digit, which decides at the middle of two steps.
    assert (found != a + 2**exponent * c).float().mean() < 2e-3
    assert (found.min(), found.max()) == integer_range(bits, exponent)
    assert len(found.unique()) <= 2**bits


@settings(max_examples=200, deadline=None)
@given(st.floats(-8, 20, width=32), st.integers(3, 6))
def test_without_a_doubling_it_is_one_grid_of_that_range(number: float, bits: int) -> None:
    step, low, high = torch.tensor(0.25), *integer_range(bits, 0)
    x = torch.tensor(number)
    if (x / step * 2 % 2) == 1:
        return  # exactly between two integers: the end of the first region is odd
    assert quantized(x, step, bits, 0) == (x / step).round().clamp(low, high)


def test_gradients_pass_as_they_do_on_a_grid() -> None:
    x = torch.tensor([-9.0, -0.3, 1.2, 30.0, 500.0], requires_grad=True)
    (quantized(x, torch.tensor(1.0), 4, 3)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("bits", [3, 4, 6])
def test_the_least_error_is_taken_and_one_region_where_two_do_not_help(bits: int) -> None:
    x, ones = tail().view(-1, 1), torch.ones(1)
    step, exponent = fitted(x, ones, bits, 4)
    single, none = fitted(x, ones, bits, ONE_REGION)
    assert exponent > 0
    assert none == ONE_REGION
    wrong, plain = (
        float((quantized(x, s, bits, e) * s - x).square().sum())
        for s, e in ((step, exponent), (single, none))
    )
    assert wrong < plain / 2
    even = torch.linspace(-1, 1, 999).view(-1, 1)
    assert fitted(even, ones, bits, 4)[1] == ONE_REGION


def test_errors_of_channels_that_weigh_more_count_more() -> None:
    x = torch.stack([tail(seed=1), torch.linspace(-2, 2, 4000)], 1)
    assert fitted(x, torch.tensor([1.0, 1e-6]), 4, 4)[1] > 0
    assert fitted(x, torch.tensor([1e-6, 1.0]), 4, 4)[1] == ONE_REGION


def test_the_quantizer_says_what_it_adds_up_and_follows_its_bits() -> None:
    x = tail()
    identity = made(x)
    proxy = identity.act_quant
    out = identity(x)
    first, second = proxy.regions
    assert (first.bit_width, first.signed, second.bit_width, second.signed) == (3, True, 3, False)
    integers = (out.value / out.scale).round()
    assert proxy.integer_range == InputRange(-4, 3 + 7 * int(second.scale / first.scale))
    assert proxy.integer_range.low <= integers.min()
    assert integers.max() == proxy.integer_range.high
    assert out.is_valid
    set_bits([proxy], 6)
    finer = identity(x)
    assert (finer.value - x).square().mean() < (out.value - x).square().mean() / 8
    set_bits([proxy], 9)
    with pytest.raises(InvalidOption, match="2 to 8 bits, not 9"):
        identity(x)


def test_one_region_is_an_ordinary_quantizer() -> None:
    x = torch.linspace(-1, 1, 1000)
    identity = made(x)
    out = identity(x)
    assert (out.value / out.scale).round().unique().tolist() == list(range(-8, 8))
    assert int(out.bit_width) == 4
    assert [part.bit_width for part in identity.act_quant.regions] == [4]
    assert regions(1.0, 2, ONE_REGION)[0].ends == (-2, 1)
