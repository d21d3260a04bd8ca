"""FINN's look-up tables by hand, and for other hardware."""

from __future__ import annotations

from dataclasses import replace

from brevitas_axe.methods.cost import Folding, Hardware, LayerShape, estimate
from brevitas_axe.methods.cost.finn_lut import finn_lut
from brevitas_axe.plan import LayerPrecision

SHAPE = LayerShape("fc", "dense", inputs=64, outputs=32, vectors=10, output_bits=3)
BITS = LayerPrecision(weight=4, input=4, accumulator=11)
FOLDING = Folding(pe=4, simd=8)


def test_products_additions_accumulator_and_thresholds() -> None:
    per_pe = 8 * (2 * 2 - 1) * 8 + 8 * 15 + 11 + 7 * 11 * 2
    assert finn_lut(SHAPE, BITS, FOLDING) == int(300 + 1.1 * 4 * per_pe)


def test_other_hardware_for_a_registered_cost() -> None:
    rtl = replace(finn_lut, hardware=Hardware("rtl", standalone_thresholds=True))
    assert rtl(SHAPE, BITS, FOLDING) == estimate(SHAPE, BITS, FOLDING, rtl.hardware).lut
    assert rtl(SHAPE, BITS, FOLDING) < finn_lut(SHAPE, BITS, FOLDING)
