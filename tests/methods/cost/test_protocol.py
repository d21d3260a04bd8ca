"""Widths of a layer: what is not given, and what data types make superfluous."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.accumulator import datatype_bound
from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.cost import LayerShape, Widths, widths
from brevitas_axe.methods.cost.bops import bops
from brevitas_axe.methods.cost.finn_lut import finn_lut
from brevitas_axe.plan import LayerPrecision

# Unsigned inputs: 100 · 15 · 8 needs 15 bits, 10 · 15 · 8 needs 12.
SHAPE = LayerShape("fc", "dense", inputs=100, outputs=3, vectors=2)


@pytest.mark.parametrize(
    ("accumulator", "tile", "expected"),
    [
        (None, None, Widths(4, 4, 15, 1, 15)),
        (10, None, Widths(4, 4, 10, 1, 10)),
        (20, None, Widths(4, 4, 15, 1, 15)),
        (8, 10, Widths(4, 4, 8, 10, 12)),
        (None, 10, Widths(4, 4, 12, 10, 15)),
        (8, 30, Widths(4, 4, 8, 4, 10)),
        (8, 1000, Widths(4, 4, 8, 1, 8)),
    ],
)
def test_accumulators_are_as_wide_as_given_and_no_wider_than_needed(
    accumulator, tile, expected
) -> None:
    assert widths(SHAPE, LayerPrecision(4, 4, accumulator, tile)) == expected


def test_a_signed_input_needs_a_bit_less() -> None:
    signed = LayerShape("fc", "dense", inputs=100, outputs=3, vectors=2, signed=True)
    assert widths(signed, LayerPrecision(4, 4)).accumulator == 14


def test_formats_count_by_their_bits_and_need_an_exact_accumulator() -> None:
    # 100 terms of at most 229,376 · 12, in units of 2^-9 · 0.5.
    exact = (100 * 229_376 * 12).bit_length() + 1
    assert widths(SHAPE, LayerPrecision("e4m3", "e2m1")) == Widths(8, 4, exact, 1, exact)
    assert widths(SHAPE, LayerPrecision("e4m3", "e2m1", 20)).accumulator == 20
    shape = replace(SHAPE, inputs=10)
    assert bops(shape, LayerPrecision("e4m3", "e2m1")) == bops(shape, LayerPrecision(8, 4))


def test_finn_refuses_formats_by_the_name_of_the_layer() -> None:
    with pytest.raises(InvalidPlan, match="'fc' is planned in e4m3, but FINN computes with only"):
        finn_lut(SHAPE, LayerPrecision("e4m3", 4))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"kind": "Depthwise"}, "kind of layer 'fc' must be one of dense, depthwise"),
        ({"inputs": 0}, "layer 'fc' has 0 inputs"),
        ({"outputs": 0}, "layer 'fc' has 0 outputs"),
        ({"vectors": -1}, "layer 'fc' has -1 vectors"),
    ],
)
def test_a_shape_that_no_layer_has_is_refused(wrong, says) -> None:
    with pytest.raises(InvalidOption, match=says):
        replace(SHAPE, **wrong)


@given(st.integers(1, 5000), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_the_accumulator_of_uniq_is_the_data_type_bound(inputs, weight, bits, signed) -> None:
    """UNIQ's W + A + log2 K, made exact, is at most two bits away."""
    import math

    exact = datatype_bound(inputs, bits, weight, signed)
    assert abs(weight + bits + math.log2(inputs) - exact) <= 2
