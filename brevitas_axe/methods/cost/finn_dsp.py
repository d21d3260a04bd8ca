"""DSP blocks that FINN estimates: none, unless the hardware multiplies in them."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost, Hardware
from brevitas_axe.registry import Facts

finn_dsp = FinnCost(
    "dsp",
    "DSP blocks",
    ("weight", "input", "accumulator"),
    Facts(
        kind="–",
        granularity="layer",
        signal="FINN's formula of DSP blocks",
        export="–",
        source="finn-plus 1.6.1",
    ),
    Hardware(res_type="dsp"),
)
