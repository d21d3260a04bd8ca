"""Bit operations with the adders: a MAC costs W·A for its product and P for its addition.

UNIQ (arXiv 1804.10969) counts W·A + W + A + log2 K per MAC, where the last three are the width
of an accumulator that can store any sum. Here the accumulator's real width counts instead; with
tiles, every tile but the first adds its result once to an outer accumulator.
"""

from __future__ import annotations

from brevitas_axe.methods.cost.protocol import Formula, LayerShape, Widths
from brevitas_axe.registry import Facts


def _bit_operations(shape: LayerShape, bits: Widths) -> float:
    products = shape.macs * (bits.weight * bits.input + bits.accumulator)
    return products + shape.outputs * shape.vectors * (bits.tiles - 1) * bits.outer


macs_accumulator = Formula(
    _bit_operations,
    "bit operations",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="products and additions",
        export="–",
        source="arXiv 1804.10969",
    ),
)
