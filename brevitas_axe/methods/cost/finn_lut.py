"""Look-up tables that FINN estimates."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost
from brevitas_axe.registry import Facts

finn_lut = FinnCost(
    "lut",
    "LUTs",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="FINN's formula of look-up tables",
        export="–",
        source="finn-plus 1.6.1",
    ),
)
