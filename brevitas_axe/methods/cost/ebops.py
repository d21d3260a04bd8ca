"""Effective bit operations of unrolled hardware, with the adders: what hls4ml's users call EBOPs.

HGQ (arXiv 2405.00645, Eq. 5) counts b_w·b_x for every multiplier that is built, and finds that LUTs
and DSPs follow the sum. It counts the bits between the first and the last 1 of each weight, which
no plan knows: here stand the W bits that a plan gives, an upper bound. HGQ leaves the adders out,
where accumulators cost; each multiplier is followed by one of P bits. A multiplier is used again at
every position of an image, so positions do not count, as with hls4ml's parallelization factor of 1.
"""

from __future__ import annotations

from brevitas_axe.methods.cost.protocol import Formula, LayerShape, Widths
from brevitas_axe.registry import Facts


def _bit_operations(shape: LayerShape, bits: Widths) -> float:
    built = shape.weights * (bits.weight * bits.input + bits.accumulator)
    return built + shape.outputs * (bits.tiles - 1) * bits.outer


ebops = Formula(
    _bit_operations,
    "bit operations",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="multipliers and adders that are built",
        export="–",
        source="arXiv 2405.00645",
    ),
)
