"""DSP blocks that FINN estimates: none, unless the hardware multiplies in them."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost, Hardware

finn_dsp = FinnCost(
    "dsp", "DSP blocks", ("weight", "input", "accumulator"), Hardware(res_type="dsp")
)
