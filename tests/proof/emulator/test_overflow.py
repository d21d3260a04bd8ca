"""Accumulators of P bits against a loop over Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from brevitas_axe.accumulator import fits, outer_bit_width
from brevitas_axe.proof.emulator.overflow import accumulate

SMALL = st.integers(-8, 8)


def held(value: int, bits: int, overflow: str) -> int:
    limit = 2 ** (bits - 1)
    if overflow == "saturate":
        return min(max(value, -limit), limit - 1)
    return (value + limit) % (2 * limit) - limit


def by_hand(row, column, bits: int, tile: int | None, overflow: str) -> tuple[int, int]:
    """One dot product, product by product: its result and how many accumulators overflowed."""
    tile = tile or len(row)
    outer = outer_bit_width(bits, len(row), tile)
    total, overflows = 0, 0
    for start in range(0, len(row), tile):
        inner, hit = 0, False
        for a, b in zip(row[start : start + tile], column[start : start + tile], strict=True):
            exact = inner + int(a) * int(b)
            inner = held(exact, bits, overflow)
            hit |= inner != exact
        plain = sum(int(a) * int(b) for a, b in zip(
            row[start : start + tile], column[start : start + tile], strict=True))  # fmt: skip
        overflows += hit if overflow == "saturate" else inner != plain
        overflows += held(total + inner, outer, overflow) != total + inner
        total = held(total + inner, outer, overflow)
    return total, overflows


@settings(deadline=None, max_examples=120)
@given(
    hnp.arrays(np.int64, st.tuples(st.integers(1, 3), st.integers(1, 7)), elements=SMALL),
    st.integers(1, 3),
    st.integers(2, 10),
    st.none() | st.integers(1, 8),
    st.sampled_from(["wrap", "saturate"]),
    st.randoms(),
)
def test_as_by_hand(left, columns, bits, tile, overflow, random) -> None:
    shape = (left.shape[1], columns)
    right = np.array([random.randint(-8, 8) for _ in range(shape[0] * columns)]).reshape(shape)
    done = accumulate(left, right, bits, tile, overflow)
    expected = [[by_hand(r, c, bits, tile, overflow) for c in right.T] for r in left]
    assert done.sums.tolist() == [[total for total, _ in row] for row in expected]
    assert done.overflows == sum(count for row in expected for _, count in row)


@settings(deadline=None, max_examples=60)
@given(
    hnp.arrays(np.int64, (3, 6), elements=st.integers(-7, 7)),
    hnp.arrays(np.int64, (6, 4), elements=st.integers(0, 15)),
    st.integers(4, 12),
    st.none() | st.integers(1, 6),
    st.sampled_from(["wrap", "saturate"]),
)
def test_rows_that_fit_never_overflow(weights, inputs, bits, tile, overflow) -> None:
    proven = fits(weights, 0, 15, bits, tile)
    done = accumulate(weights[proven], inputs, bits, tile, overflow)
    assert done.overflows == 0
    assert np.array_equal(done.sums, weights[proven] @ inputs)


def test_the_worst_input_of_a_row_that_does_not_fit_overflows() -> None:
    row, worst = np.array([[7, -7, 7, 7]]), np.array([[15], [0], [15], [15]])
    assert accumulate(row, worst, 9, None, "wrap").overflows == 1
    assert accumulate(row, worst, 9, None, "saturate").sums.item() == 255
    assert accumulate(row, worst, 10, None, "wrap").overflows == 0
    assert accumulate(row, worst, 9, None, "wrap").largest == 315


def test_saturation_depends_on_the_order_and_wrapping_does_not() -> None:
    row, flipped = np.array([[4, 4, -4]]), np.array([[4, -4, 4]])
    ones = np.ones((3, 1), np.int64)
    assert accumulate(row, ones, 4, None, "saturate").sums.item() == 3
    assert accumulate(flipped, ones, 4, None, "saturate").sums.item() == 4
    assert accumulate(row, ones, 4, None, "wrap").sums.item() == 4
    assert accumulate(row, ones, 4, None, "wrap").overflows == 0


@pytest.mark.parametrize("bits", [62, 63, 64])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_wide_accumulators_are_exact(bits, overflow) -> None:
    big = 2**29 + 1
    row, column = np.full((1, 6), big), np.full((6, 1), big)
    done = accumulate(row, column, bits, None, overflow)
    exact = 6 * big * big
    assert done.sums.item() == held(exact, bits, overflow)
    assert done.overflows == int(exact >= 2 ** (bits - 1))


def test_sums_beyond_int64_wrap_like_hardware() -> None:
    row, column = np.full((1, 8), 2**31), np.full((8, 1), 2**31)
    assert accumulate(row, column, 64, None, "wrap").sums.item() == held(2**65, 64, "wrap")
    assert accumulate(row, column, 16, None, "wrap").sums.item() == 0


def test_batches_broadcast() -> None:
    rng = np.random.default_rng(0)
    left, right = rng.integers(-8, 8, (2, 3, 4, 5)), rng.integers(-8, 8, (3, 5, 2))
    for overflow in ("wrap", "saturate"):
        assert np.array_equal(accumulate(left, right, 32, None, overflow).sums, left @ right)
    one_by_one = [accumulate(a[i], right[i], 6, 2, "saturate").sums for a in left for i in range(3)]
    together = accumulate(left, right, 6, 2, "saturate").sums
    assert np.array_equal(together.reshape(6, 4, 2), np.array(one_by_one))
