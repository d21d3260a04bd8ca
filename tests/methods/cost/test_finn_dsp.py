"""FINN's DSP blocks: the multipliers, whatever their bits."""

from __future__ import annotations

from dataclasses import replace

from brevitas_axe.methods.cost import Folding, Hardware, LayerShape
from brevitas_axe.methods.cost.finn_dsp import finn_dsp
from brevitas_axe.plan import LayerPrecision

SHAPE = LayerShape("fc", "dense", inputs=64, outputs=32, vectors=10, output_bits=3)
BITS = LayerPrecision(weight=4, input=4, accumulator=11)
FOLDING = Folding(pe=4, simd=8)


def test_one_block_per_parallel_product_of_few_bits() -> None:
    assert finn_dsp(SHAPE, BITS, FOLDING) == 4 * 8
    assert finn_dsp(SHAPE, replace(BITS, accumulator=30), FOLDING) == 4 * 8


def test_none_where_products_are_made_of_look_up_tables() -> None:
    assert replace(finn_dsp, hardware=Hardware(res_type="lut"))(SHAPE, BITS, FOLDING) == 0
