"""FINN's block RAMs."""

from __future__ import annotations

from brevitas_axe.methods.cost import Folding, LayerShape
from brevitas_axe.methods.cost.finn_bram import finn_bram
from brevitas_axe.plan import LayerPrecision


def test_more_weight_bits_can_take_fewer_block_rams() -> None:
    """So no growth with them is claimed."""
    shape = LayerShape("dw", "depthwise", 9, 300, 10, 300, (3, 3), 300)
    blocks = [finn_bram(shape, LayerPrecision(bits, 4), Folding(3, 1)) for bits in (3, 4)]
    assert blocks == [2, 1]
    assert "weight" not in finn_bram.grows_with
