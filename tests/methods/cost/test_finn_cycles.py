"""FINN's clock cycles: shape and folding, and no bits."""

from __future__ import annotations

import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import check_budget
from brevitas_axe.methods.cost import Folding, LayerShape
from brevitas_axe.methods.cost.finn_cycles import finn_cycles
from brevitas_axe.plan import LayerPrecision

SHAPE = LayerShape("fc", "dense", inputs=64, outputs=32, vectors=10, output_bits=3)
BITS = LayerPrecision(weight=4, input=4, accumulator=11)
FOLDING = Folding(pe=4, simd=8)


def test_every_weight_meets_every_vector() -> None:
    assert finn_cycles(SHAPE, BITS, FOLDING) == 64 * 32 * 10 // (4 * 8)
    assert finn_cycles(SHAPE, BITS) == 64 * 32 * 10


def test_bits_change_nothing_so_it_is_no_budget_for_them() -> None:
    for wider in (LayerPrecision(8, 4, 11), LayerPrecision(4, 8, 11), LayerPrecision(4, 4, 30)):
        assert finn_cycles(SHAPE, wider, FOLDING) == finn_cycles(SHAPE, BITS, FOLDING)
    assert not finn_cycles.depends_on_bits
    with pytest.raises(InvalidOption, match="finn_cycles is no budget for bits"):
        check_budget("finn_cycles")
    check_budget("finn_lut")
