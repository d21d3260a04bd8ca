"""Every bound against all inputs, or against Python's own integers."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import ceil, floor, inf, log2, nan

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from qonnx.core.datatype import DataType
from qonnx.util.basic import calculate_matvec_accumulator_range

from brevitas_axe.accumulator import (
    InputRange,
    a2q_l1_bound,
    a2q_plus_l1_bound,
    accumulator_limit,
    axe_l1_radius,
    check_bit_width,
    datatype_bound,
    fits,
    one_sided_budgets,
    outer_bit_width,
    required_bit_width,
    tile_starts,
    worst_case_sums,
)
from brevitas_axe.errors import (
    AccumulatorTooNarrow,
    InvalidOption,
    InvalidTile,
    MissingInputQuantizer,
)

LOWS, HIGHS = st.integers(-3, 0), st.integers(0, 3)


@st.composite
def dot_products(draw, max_inputs: int = 4):
    """(weights, low, high) with a range of its own for each input."""
    inputs = draw(st.integers(1, max_inputs))
    weights = draw(st.lists(st.integers(-8, 7), min_size=inputs, max_size=inputs))
    low = draw(st.lists(LOWS, min_size=inputs, max_size=inputs))
    high = draw(st.lists(HIGHS, min_size=inputs, max_size=inputs))
    return np.array(weights), np.array(low), np.array(high)


def all_inputs(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    ranges = [range(a, b + 1) for a, b in zip(low, high, strict=True)]
    return np.array(list(itertools.product(*ranges)))


@settings(deadline=None, max_examples=150)
@given(dot_products(), st.integers(1, 5))
def test_worst_case_sums_are_reached_and_never_passed(problem, tile) -> None:
    weights, low, high = problem
    minimum, maximum = worst_case_sums(weights, low, high, tile)
    products = all_inputs(low, high) * weights
    for index, start in enumerate(range(0, len(weights), tile)):
        sums = products[:, start : start + tile].sum(axis=1)
        assert (minimum[0, index], maximum[0, index]) == (sums.min(), sums.max())
    assert minimum.shape == (1, -(-len(weights) // tile))


@settings(deadline=None, max_examples=100)
@given(dot_products(max_inputs=3), st.permutations(range(3)))
def test_no_partial_sum_in_any_order_passes_the_worst_case(problem, order) -> None:
    weights, low, high = problem
    order = [k for k in order if k < len(weights)]
    minimum, maximum = worst_case_sums(weights, low, high)
    partial = np.cumsum((all_inputs(low, high) * weights)[:, order], axis=1)
    assert minimum[0, 0] <= partial.min()
    assert partial.max() <= maximum[0, 0]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(-8, 7), min_size=6, max_size=6), min_size=1, max_size=4),
    st.sampled_from(["UINT4", "INT4", "UINT8", "INT8", "BIPOLAR", "TERNARY"]),
)
def test_agrees_with_qonnx(rows, datatype) -> None:
    datatype = DataType[datatype]
    low, high = int(datatype.min()), int(datatype.max())
    minimum, maximum = worst_case_sums(rows, low, high)
    theirs = calculate_matvec_accumulator_range(np.array(rows).T, datatype)
    assert (minimum.min(), maximum.max()) == theirs


@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=9),
    st.integers(-(2**40), 0),
    st.integers(0, 2**64),
    st.integers(1, 4),
)
def test_exact_beyond_int64(weights, low, high, tile) -> None:
    minimum, maximum = worst_case_sums([weights], low, high, tile)
    starts = range(0, len(weights), tile)
    tiles = [weights[start : start + tile] for start in starts]
    assert list(minimum[0]) == [sum(min(q * low, q * high) for q in t) for t in tiles]
    assert list(maximum[0]) == [sum(max(q * low, q * high) for q in t) for t in tiles]


def test_a_row_without_inputs_sums_to_zero() -> None:
    minimum, maximum = worst_case_sums(np.zeros((3, 0), np.int64), 0, 255)
    assert minimum.tolist() == maximum.tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("weights", [[0.5], [1.0], ["a"]])
def test_only_integers_are_summed(weights) -> None:
    with pytest.raises(InvalidOption, match="integers"):
        worst_case_sums(np.array(weights), 0, 1)


def test_ranges_without_zero_are_refused() -> None:
    with pytest.raises(InvalidOption, match="contain 0"):
        worst_case_sums([[1]], 1, 2)
    with pytest.raises(InvalidOption, match="contain 0"):
        InputRange(1, 2)


@given(st.integers(1, 8), st.booleans(), st.booleans(), st.integers(-300, 300))
def test_input_range_is_that_of_the_quantizer(bits, signed, narrow, zero_point) -> None:
    assume(not (narrow and bits == 1 and not signed))
    stored = range(-(2 ** (bits - 1)) + narrow, 2 ** (bits - 1)) if signed else range(
        2**bits - narrow
    )  # fmt: skip
    real = [q - zero_point for q in stored] + [0]
    assert InputRange.from_bits(bits, signed, narrow, zero_point) == InputRange(
        min(real), max(real)
    )


@given(st.integers(1, 16), st.booleans(), st.data())
def test_a_range_has_the_bits_of_its_quantizer(bits, signed, data) -> None:
    whole = InputRange.from_bits(bits, signed)
    zero_point = data.draw(st.integers(whole.low, whole.high))
    assert InputRange.from_bits(bits, signed, zero_point=zero_point).bit_width == bits


def test_union_contains_both() -> None:
    assert InputRange(-3, 1).union(InputRange(0, 9)) == InputRange(-3, 9)


@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70))
def test_required_bit_width_is_the_smallest(minimum, maximum) -> None:
    width = required_bit_width(minimum, maximum)
    assert max(abs(minimum), abs(maximum)) <= 2 ** (width - 1) - 1
    assert width == 2 or max(abs(minimum), abs(maximum)) > 2 ** (width - 2) - 1


@given(st.integers(2, 40), st.integers(1, 3000), st.integers(1, 3000))
def test_outer_bit_width_is_the_formula_and_holds_the_tiles(width, inputs, tile) -> None:
    outer = outer_bit_width(width, inputs, tile)
    tiles = len(range(0, inputs, tile))
    assert outer == width + ceil(log2(tiles))
    assert tiles * accumulator_limit(width) <= 2 ** (outer - 1) - 1


def test_outer_bit_width_without_tiles_is_the_inner_one() -> None:
    assert outer_bit_width(16, 1000, None) == 16


@given(st.integers(1, 200), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_datatype_bound_is_the_formula_and_safe(inputs, n, m, signed) -> None:
    bound = datatype_bound(inputs, n, m, signed)
    worst = Fraction(inputs) * 2 ** (n + m - 1 - signed)
    # ⌈log2(worst + 1) + 1⌉ without floating point: the least P with 2^(P-1) ≥ worst + 1.
    assert 2 ** (bound - 1) >= worst + 1 > 2 ** (bound - 2)
    given_range = InputRange.from_bits(n, signed)
    lowest = np.full((1, inputs), -(2 ** (m - 1)))
    assert fits(lowest, given_range.low, given_range.high, max(bound, 2)).all()


@settings(max_examples=200)
@given(
    st.integers(4, 20),
    st.integers(1, 8),
    st.booleans(),
    st.lists(st.integers(-20, 20), min_size=1, max_size=12),
)
def test_a_row_inside_the_a2q_bound_fits(width, bits, signed, row) -> None:
    given_range = InputRange.from_bits(bits, signed)
    if sum(map(abs, row)) <= a2q_l1_bound(width, bits, signed):
        assert fits([row], given_range.low, given_range.high, width).all()


@settings(max_examples=200)
@given(
    st.integers(4, 20),
    st.integers(1, 8),
    st.booleans(),
    st.lists(st.integers(-20, 20), min_size=2, max_size=12),
)
def test_a_zero_centred_row_inside_the_a2q_plus_bound_fits(width, bits, signed, row) -> None:
    row = [*row, -sum(row)]
    given_range = InputRange.from_bits(bits, signed)
    inside = sum(map(abs, row)) <= a2q_plus_l1_bound(width, bits)
    assert inside == (sum(map(abs, row)) <= axe_l1_radius(width, given_range.low, given_range.high))
    if inside:
        assert fits([row], given_range.low, given_range.high, width).all()


def test_the_bounds_are_those_of_the_papers() -> None:
    assert a2q_l1_bound(16, 8, input_signed=True) == Fraction(32767, 128)
    assert a2q_l1_bound(16, 8, input_signed=False) == Fraction(32767, 256)
    assert a2q_plus_l1_bound(16, 8) == Fraction(65534, 255)
    assert axe_l1_radius(16, -128, 127) == Fraction(65534, 255)


@given(
    st.integers(3, 16),
    st.integers(1, 8),
    st.lists(st.integers(-30, 30), min_size=1, max_size=10),
)
def test_one_sided_budgets_are_exact_for_unsigned_inputs(width, bits, row) -> None:
    high = 2**bits - 1
    positive, negative = one_sided_budgets(width, 0, high)
    inside = sum(q for q in row if q > 0) <= positive and -sum(q for q in row if q < 0) <= negative
    assert bool(fits([row], 0, high, width)[0]) == inside


@given(
    st.integers(3, 16),
    st.integers(1, 8),
    st.lists(st.integers(-30, 30), min_size=1, max_size=10),
)
def test_one_sided_budgets_are_necessary_for_signed_inputs(width, bits, row) -> None:
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    positive, negative = one_sided_budgets(width, low, high)
    if fits([row], low, high, width)[0]:
        assert sum(q for q in row if q > 0) <= positive
        assert -sum(q for q in row if q < 0) <= negative


@pytest.mark.parametrize("bound", [axe_l1_radius, one_sided_budgets])
def test_an_input_that_is_always_zero_has_no_budget(bound) -> None:
    with pytest.raises(MissingInputQuantizer, match="quantize the input"):
        bound(16, 0, 0)


@given(st.lists(st.lists(st.integers(-8, 7), min_size=5, max_size=5), min_size=1, max_size=6))
def test_fits_judges_each_row_by_itself(rows) -> None:
    widths = [
        required_bit_width(*(int(v[0, 0]) for v in worst_case_sums([row], 0, 15))) for row in rows
    ]
    for width in (2, 5, 8, 11):
        assert fits(rows, 0, 15, width).tolist() == [w <= width for w in widths]


@pytest.mark.parametrize("width", [1, 0, -3, 65, 16.5, nan, inf, None, True, "8"])
def test_impossible_widths_are_refused(width) -> None:
    with pytest.raises(AccumulatorTooNarrow, match="accumulator bit width"):
        check_bit_width(width)


def test_whole_floats_are_widths() -> None:
    assert check_bit_width(16.0) == 16
    assert accumulator_limit(16) == 32767


@pytest.mark.parametrize("tile", [0, -1, 1.5, True])
def test_impossible_tiles_are_refused(tile) -> None:
    with pytest.raises(InvalidTile, match="tile"):
        tile_starts(10, tile)


@given(st.integers(1, 100), st.integers(1, 120))
def test_tiles_cover_every_input_once(inputs, tile) -> None:
    starts = [*tile_starts(inputs, tile), inputs]
    sizes = np.diff(starts)
    assert starts[0] == 0
    assert (sizes[:-1] == tile).all()
    assert 1 <= sizes[-1] <= tile
    assert floor(inputs / tile) <= len(sizes)
