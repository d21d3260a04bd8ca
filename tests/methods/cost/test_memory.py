"""Bytes of weights by hand; test_bops.py compares with what qonnx counts."""

from __future__ import annotations

from brevitas_axe.methods.cost import LayerShape
from brevitas_axe.methods.cost.memory import memory
from brevitas_axe.plan import LayerPrecision


def test_weights_take_their_bits_and_nothing_else_counts() -> None:
    shape = LayerShape("fc", "dense", inputs=100, outputs=3, vectors=2)
    assert memory(shape, LayerPrecision(weight=4, input=6, accumulator=9)) == 150
    assert memory(shape, LayerPrecision(weight=4, input=2, accumulator=30, tile=7)) == 150
    assert memory(shape, LayerPrecision(weight=3, input=6)) == 112.5
