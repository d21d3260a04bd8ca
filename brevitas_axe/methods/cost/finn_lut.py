"""Look-up tables that FINN estimates for its HLS units; it reports 0 for MVAU_rtl and VVAU_rtl."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost
from brevitas_axe.registry import Facts

finn_lut = FinnCost(
    "lut",
    "LUTs (MVAU_hls)",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="FINN's formula of MVAU_hls's look-up tables (MVAU_rtl reports 0)",
        export="–",
        source="finn-plus 1.6.1",
    ),
)
