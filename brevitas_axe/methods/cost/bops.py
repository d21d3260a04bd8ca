"""Bit operations: MACs × W × A, as qonnx's inference cost counts them (zero weights included).

qonnx leaves transposed convolutions out; here they count.
"""

from __future__ import annotations

from brevitas_axe.methods.cost.protocol import Formula, LayerShape, Widths
from brevitas_axe.registry import Facts


def _bit_operations(shape: LayerShape, bits: Widths) -> float:
    return shape.macs * bits.weight * bits.input


bops = Formula(
    _bit_operations,
    "bit operations",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–", granularity="layer", signal="products", export="–", source="qonnx inference_cost"
    ),
)
