"""Projection on an accumulator budget, against plain Python integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.proxies.projection import (
    Budget,
    exceeds,
    project,
    projected_tiles,
    subtract_mean,
    tiled,
    without_mean,
)

RANGES = st.sampled_from(
    [
        InputRange(low, high)
        for low, high in [(0, 255), (-128, 127), (0, 1), (-8, 7), (-255, 0), (-5, 10), (0, 65535)]
    ]
)


@st.composite
def layers(draw):
    rows, columns = draw(st.integers(1, 4)), draw(st.integers(1, 40))
    seed, size = draw(st.integers(0, 2**16)), draw(st.sampled_from([0.4, 3.0, 40.0, 1e6]))
    values = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * size
    kind = draw(st.sampled_from(["any", "equal", "sparse", "one-sided"]))
    if kind == "equal":
        values = values[:, :1].expand(-1, columns).clone()
    elif kind == "sparse":
        values = values * (torch.arange(columns) % 5 == 0)
    elif kind == "one-sided":
        values = values.abs()
    return values


def compiled(values, reach, bits, tile, top):
    """What the CPU's kernel makes of rounded values."""
    integers = values.round()
    over = project(integers, values.clone(), Budget(reach, bits, tile), top)
    return integers, over


def tensorial(values, reach, bits, tile, top):
    """What other devices compute."""
    budget, integers = Budget(reach, bits, tile), values.round()
    size = budget.tile_size_in(values.shape[1])
    tiles = tiled(integers, size)
    over = exceeds(tiles, budget)
    tiles = tiles.clone()
    tiles[over] = projected_tiles(tiles[over], tiled(values, size)[over], budget)
    return tiles.flatten(1)[:, : values.shape[1]], over


def worst(row, reach, tile):
    """Largest magnitude of any partial sum, tile by tile."""
    tile = tile or len(row)
    return max(
        abs(sum(pick(q * reach.low, q * reach.high) for q in row[start : start + tile]))
        for start in range(0, len(row), tile)
        for pick in (min, max)
    )


@pytest.mark.parametrize("how", [compiled, tensorial])
@settings(max_examples=200, deadline=None)
@given(
    layers(), RANGES, st.integers(2, 30), st.sampled_from([None, 1, 3, 8, 100]), st.integers(1, 8)
)
def test_projected_rows_fit_and_waste_nothing(how, values, reach, bits, tile, weight_bits):
    top = max(2 ** (weight_bits - 1) - 1, 1)
    values = values.clamp(-top, top)
    result, over = how(values, reach, bits, tile, top)
    limit = 2 ** (bits - 1) - 1
    rows = zip(result.int().tolist(), values.round().int().tolist(), strict=True)
    for index, (row, rounded) in enumerate(rows):
        assert worst(row, reach, tile) <= limit
        fitted = worst(rounded, reach, tile) <= limit
        assert fitted == (over is None or not bool(over[index].any()))
        if fitted:
            assert row == rounded
        # Never past the rounded weight, never of the other sign.
        assert all(
            0 <= q * (1 if r >= 0 else -1) <= abs(r) for q, r in zip(row, rounded, strict=True)
        )
        if any(rounded) and max(-reach.low, reach.high) <= limit:
            assert any(row), "a weight of one would have fitted"


def nearest_error(row, budget):
    """Smallest squared error of any integers with at most `budget` units: the best units first."""
    sizes = [abs(v) for v in row]
    worth = sorted((2 * (a - k) - 1 for a in sizes for k in range(int(a + 1))), reverse=True)
    return sum(a * a for a in sizes) - sum(w for w in worth[:budget] if w > 0)


@pytest.mark.parametrize("how", [compiled, tensorial])
@pytest.mark.parametrize("kind", ["gauss", "laplace", "uniform", "rounded", "sparse"])
@pytest.mark.parametrize("share", [0.9, 0.4, 0.1])
def test_the_projection_is_the_nearest_point(how, kind, share):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 200, generator=generator) * 2.3
    uniform = torch.rand(6, 200, generator=generator)
    values = {
        "gauss": values,
        "laplace": values * values.abs(),
        "uniform": 7 * uniform,
        "rounded": values.round(),
        "sparse": values * 3 * (uniform < 0.1),
    }[kind].clamp(-7, 7)
    units = max(int(values.abs().round().sum(1).min() * share), 1)
    # Inputs in [-1, 1]: each unit of either sign costs one.
    bits = units.bit_length() + 1
    units = 2 ** (bits - 1) - 1
    result, _ = how(values, InputRange(-1, 1), bits, None, 7)
    for row, held in zip(values.tolist(), result.tolist(), strict=True):
        error = sum((v - q) ** 2 for v, q in zip(row, held, strict=True))
        assert error <= nearest_error(row, units) * 1.001 + 1e-3


@pytest.mark.parametrize("how", [compiled, tensorial])
def test_equal_weights_share_the_budget_instead_of_vanishing(how):
    row, _ = how(torch.full((1, 100), 1.0), InputRange(0, 255), 12, None, 7)
    assert int(row.sum()) == 2047 // 255


@pytest.mark.parametrize("how", [compiled, tensorial])
def test_only_the_tile_and_side_over_budget_is_shrunk(how):
    values = torch.tensor([[7.0, 7, 7, -1, -2, 0, 1, 1]])
    row, over = how(values, InputRange(0, 15), 8, 4, 7)  # 127 // 15 = 8 per side and tile
    assert over is not None
    assert over.tolist() == [[True, False]]
    assert row[0, 3:].tolist() == [-1, -2, 0, 1, 1]
    assert int(row[0, :3].sum()) == 8


def test_sums_at_the_edge_of_a_budget_beyond_float32_are_told_apart():
    # The limit is 2^32 - 1 = 65537 · 65535: one unit of 65537 less fits, one more does not.
    reach, bits = InputRange(0, 65537), 33
    for units, fits in ((65535, True), (65536, False)):
        values = torch.tensor([[float(units - 1), 1.0]])
        integers, over = compiled(values, reach, bits, None, 65536)
        assert over is not None
        assert bool(over.any()) != fits
        assert int(integers.sum()) == 65535


def test_sums_that_the_type_would_round_are_refused():
    values = torch.full((1, 600), 30000.0)
    with pytest.raises(UnsupportedLayer, match=r"not exact in torch\.float32"):
        compiled(values, InputRange(0, 255), 16, None, 32767)
    integers, _ = compiled(values.double(), InputRange(0, 255), 16, None, 32767)
    assert int(integers.sum()) == 32767 // 255


@settings(max_examples=100, deadline=None)
@given(layers(), RANGES, st.integers(2, 16), st.sampled_from([None, 3, 8]))
def test_both_ways_take_the_same_out_of_a_gradient(values, reach, bits, tile):
    budget, size = (
        Budget(reach, bits, tile),
        Budget(reach, bits, tile).tile_size_in(values.shape[1]),
    )
    values = values.clamp(-7, 7)
    integers, over = compiled(values, reach, bits, tile, 7)
    if over is None:
        return
    gradient = torch.linspace(-1, 2, values.numel()).view_as(values).sin()
    gradient_left = gradient.clone()
    scaled = subtract_mean(gradient_left, integers, values, over, budget)
    inside = over.unsqueeze(-1)
    expected = without_mean(tiled(gradient, size), tiled(integers, size) * inside, budget)
    torch.testing.assert_close(gradient_left, expected.flatten(1)[:, : values.shape[1]])
    products = (expected * inside * tiled(values, size)).sum(-1)
    torch.testing.assert_close(scaled, products, atol=1e-4, rtol=1e-4)
