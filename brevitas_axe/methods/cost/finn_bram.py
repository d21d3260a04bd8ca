"""Block RAMs of 18 Kbit that FINN estimates.

More weight bits can take fewer of them: a wider word may fill its blocks better.
"""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost
from brevitas_axe.registry import Facts

finn_bram = FinnCost(
    "bram",
    "RAMB18",
    ("input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="FINN's formula of block RAMs",
        export="–",
        source="finn-plus 1.6.1",
    ),
)
