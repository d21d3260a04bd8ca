"""Look-up tables that FINN estimates."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost

finn_lut = FinnCost("lut", "LUTs", ("weight", "input", "accumulator"))
