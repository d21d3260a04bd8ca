"""Projection on an accumulator budget, against plain Python integers."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from brevitas_axe.accumulator import InputRange
from brevitas_axe.proxies.projection import exceeds, project

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


def worst(row, reach, tile):
    """Largest magnitude of any partial sum, tile by tile."""
    tile = tile or len(row)
    return max(
        abs(sum(pick(q * reach.low, q * reach.high) for q in row[start : start + tile]))
        for start in range(0, len(row), tile)
        for pick in (min, max)
    )


@settings(max_examples=300, deadline=None)
@given(
    layers(), RANGES, st.integers(2, 30), st.sampled_from([None, 1, 3, 8, 100]), st.integers(1, 8)
)
def test_projected_rows_fit_and_waste_nothing(values, reach, bits, tile, weight_bits):
    top = max(2 ** (weight_bits - 1) - 1, 1)
    values = values.clamp(-top, top)
    result = project(values, -top, top, reach, bits, tile).tolist()
    limit = 2 ** (bits - 1) - 1
    plain = values.round().to(torch.int64)
    over = exceeds(plain, reach, bits, tile)
    for index, (row, rounded) in enumerate(zip(result, plain.tolist(), strict=True)):
        assert worst(row, reach, tile) <= limit
        assert bool(over[index]) == (worst(rounded, reach, tile) > limit)
        if not over[index]:
            assert row == rounded
        # Never past the rounded weight, never of the other sign.
        assert all(
            0 <= q * (1 if r >= 0 else -1) <= abs(r) for q, r in zip(row, rounded, strict=True)
        )
        if any(rounded) and max(-reach.low, reach.high) <= limit:
            assert any(row), "a weight of one would have fitted"


def test_equal_weights_share_the_budget_instead_of_vanishing():
    row = project(torch.full((1, 100), 1.0), -7, 7, InputRange(0, 255), 12, None)
    assert int(row.sum()) == 2047 // 255


def test_only_the_tile_and_side_over_budget_is_shrunk():
    values = torch.tensor([[7.0, 7, 7, -1, -2, 0, 1, 1]])
    row = project(values, -7, 7, InputRange(0, 15), 8, 4)  # 127 // 15 = 8 per side and tile
    assert row[0, 3:].tolist() == [-1, -2, 0, 1, 1]
    assert int(row[0, :3].sum()) == 8


def test_sums_beyond_float32_are_exact():
    # 3 · 2^24 is the budget exactly; one more must be seen. Float32 cannot tell them apart.
    reach, bits = InputRange(0, 1), 33
    fits = torch.tensor([[2**31, 2**31 - 1]], dtype=torch.int64)
    assert not exceeds(fits, reach, bits, None).any()
    assert exceeds(fits + torch.tensor([[0, 1]]), reach, bits, None).all()
