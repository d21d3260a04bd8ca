"""Clock cycles that FINN estimates; they depend on shape and folding alone."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost
from brevitas_axe.registry import Facts

finn_cycles = FinnCost(
    "cycles",
    "cycles",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="shape and folding",
        export="–",
        source="finn-plus 1.6.1",
    ),
)
