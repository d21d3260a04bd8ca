"""Multiply-accumulates with their adders, by hand."""

from __future__ import annotations

from brevitas_axe.methods.cost import LayerShape
from brevitas_axe.methods.cost.macs_accumulator import macs_accumulator
from brevitas_axe.plan import LayerPrecision


def test_products_additions_and_additions_between_tiles() -> None:
    shape = LayerShape("fc", "dense", inputs=100, outputs=3, vectors=2)
    macs = 100 * 3 * 2
    plain = LayerPrecision(weight=4, input=6, accumulator=9)
    assert macs_accumulator(shape, plain) == macs * (24 + 9)
    tiled = LayerPrecision(weight=4, input=6, accumulator=9, tile=30)
    outer_additions = 3 * 2 * 3 * 11
    assert macs_accumulator(shape, tiled) == macs * (24 + 9) + outer_additions
