"""Tables of floating-point formats against Brevitas's quantizers and torch's own types."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import pytest
import torch
from brevitas.quant.float_base import (
    Fp4e2m1Mixin,
    Fp6e2m3Mixin,
    Fp6e3m2Mixin,
    Fp8e4m3Mixin,
    Fp8e5m2Mixin,
)
from brevitas.quant.float_quant_ocp import FpOCPWeight
from hypothesis import given
from hypothesis import strategies as st

from brevitas_axe.accumulator import datatype_bound
from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.formats import MINIFLOATS, Minifloat, accumulator_bits, bits_of

MIXINS = {
    "e2m1": Fp4e2m1Mixin,
    "e2m3": Fp6e2m3Mixin,
    "e3m2": Fp6e3m2Mixin,
    "e4m3": Fp8e4m3Mixin,
    "e5m2": Fp8e5m2Mixin,
}
# The largest number and the smallest one above 0, as the OCP specifications give them.
ENDS = {
    "e2m1": (6, 0.5),
    "e2m3": (7.5, 0.125),
    "e3m2": (28, 0.0625),
    "e4m3": (448, 2.0**-9),
    "e5m2": (57344, 2.0**-16),
}
every = pytest.mark.parametrize("name", MINIFLOATS)


def brevitas_rounds(name: str, numbers: np.ndarray) -> np.ndarray:
    """What Brevitas's quantizer of this format makes of numbers, at scale 1."""
    quantizer = type("Quantizer", (FpOCPWeight, MIXINS[name]), {})
    layer: Any = qnn.QuantLinear(1, 1, bias=False, weight_quant=quantizer)
    value, scale, *_ = layer.weight_quant.tensor_quant(torch.tensor(numbers, dtype=torch.float32))
    assert float(scale) == 1
    return value.detach().numpy().astype(np.float64)


def table(name: str) -> np.ndarray:
    """All numbers of a format, ascending."""
    found = MINIFLOATS[name]
    return np.array([float(number * found.step) for number in found.integers])


@every
def test_brevitas_s_quantizer_has_these_numbers_and_no_others(name) -> None:
    numbers = table(name)
    assert (brevitas_rounds(name, numbers) == numbers).all()
    between = (numbers[1:] + numbers[:-1]) / 2
    spread = numbers[1:] - numbers[:-1]
    for share in (-0.25, -0.01, 0.01, 0.25):
        expected = numbers[:-1] if share < 0 else numbers[1:]
        assert (brevitas_rounds(name, between + share * spread) == expected).all()
    assert set(brevitas_rounds(name, between)) <= set(numbers)
    beyond = brevitas_rounds(name, numbers[-1] * np.array([-100.0, -1.2, 1.2, 100.0]))
    assert beyond.tolist() == [numbers[0], numbers[0], numbers[-1], numbers[-1]]


@every
def test_the_ends_are_those_of_the_specifications(name) -> None:
    found, (largest, smallest) = MINIFLOATS[name], ENDS[name]
    assert found.input_range.high * found.step == Fraction(largest)
    assert found.input_range.low == -found.input_range.high
    assert found.step == Fraction(smallest)
    assert f"e{found.exponent}m{found.mantissa}" == name
    assert found.bits == MIXINS[name].bit_width


@pytest.mark.parametrize(
    ("name", "kind"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)]
)
def test_torch_s_own_types_have_these_numbers(name, kind) -> None:
    patterns = torch.arange(256, dtype=torch.uint8).view(kind).double().numpy()
    assert sorted({*patterns[np.isfinite(patterns)]}) == table(name).tolist()


@given(st.sampled_from(list(MINIFLOATS)), st.sampled_from(list(MINIFLOATS)), st.integers(1, 5000))
def test_the_accumulator_is_the_narrowest_that_holds_the_largest_sum(one, other, terms) -> None:
    first, second = MINIFLOATS[one], MINIFLOATS[other]
    largest = terms * first.integers[-1] * second.integers[0]
    bits = first.accumulator_bits(second, terms)
    assert -largest <= 2 ** (bits - 1) - 1
    assert -largest > 2 ** (bits - 2) - 1


def test_bits_are_those_that_are_stored() -> None:
    assert [bits_of(name) for name in MINIFLOATS] == [4, 6, 6, 8, 8]
    assert bits_of(5) == 5
    with pytest.raises(InvalidPlan, match=r"'e9m9' does not exist.*e2m1, e2m3, e3m2, e4m3, e5m2"):
        bits_of("e9m9")


@given(st.integers(1, 4096), st.sampled_from([*MINIFLOATS]), st.integers(1, 12), st.booleans())
def test_integers_and_formats_can_be_multiplied(terms, name, bits, signed) -> None:
    found = MINIFLOATS[name]
    largest = terms * found.integers[-1] * 2 ** (bits - signed)
    width = accumulator_bits(terms, name, bits, signed)
    assert 2 ** (width - 2) - 1 < largest <= 2 ** (width - 1) - 1
    both = accumulator_bits(terms, name, name, signed)
    assert both == found.accumulator_bits(found, terms)
    bound = datatype_bound(terms, bits, bits, signed)
    assert accumulator_bits(terms, bits, bits, signed) == bound


def test_what_is_no_format_is_refused() -> None:
    with pytest.raises(InvalidOption, match="exponent of 1 bit"):
        Minifloat(0, 3)
    with pytest.raises(InvalidOption, match="at least one term"):
        MINIFLOATS["e2m1"].accumulator_bits(MINIFLOATS["e2m1"], 0)


def test_the_table_in_the_documents_is_true() -> None:
    document = Path(__file__).parents[1] / "docs" / "certificates.md"
    rows = {}
    for line in document.read_text(encoding="utf-8").splitlines():
        name, *numbers = (cell.strip().replace(",", "") for cell in line.strip("|").split("|"))
        # Not the table of what was measured.
        if name in MINIFLOATS and all(number.isdigit() for number in numbers):
            rows[name] = [int(number) for number in numbers]
    for name, found in MINIFLOATS.items():
        sums = (found.accumulator_bits(found, terms) for terms in (1, 576))
        assert rows[name] == [found.bits, len(found.integers), found.integers[-1], *sums]
