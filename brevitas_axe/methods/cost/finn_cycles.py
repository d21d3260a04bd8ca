"""Clock cycles that FINN estimates; only shape and folding count."""

from __future__ import annotations

from brevitas_axe.methods.cost.finn_nodes import FinnCost

finn_cycles = FinnCost("cycles", "cycles", ("weight", "input", "accumulator"))
