"""Memory of the weights, in bytes; scales and biases, which stay in float, are not counted."""

from __future__ import annotations

from brevitas_axe.methods.cost.protocol import Formula, LayerShape, Widths
from brevitas_axe.registry import Facts


def _bytes(shape: LayerShape, bits: Widths) -> float:
    return shape.stored_weights * bits.weight / 8


memory = Formula(
    _bytes,
    "bytes",
    ("weight", "input", "accumulator"),
    Facts(kind="–", granularity="layer", signal="bits of the weights", export="–", source="ours"),
)
