"""Every weight to its nearest number: the baseline, and a solver for floating-point formats.

Integers are rounded, and rows that overflow are brought within the budget by error diffusion; the
best quality searches on from there. Floating-point weights are rounded on their own grid
(format_rounding.py), at the best quality at a few scales, of which each row keeps the best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.format_rounding import nearest_in_format
from brevitas_axe.methods.solvers.grid_start import from_start
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Nearest:
    """Rounds to the nearest integer, or to the nearest number of a floating-point format."""

    uses_float_inputs = False
    rounds_floats = True
    facts = Facts(
        kind="–",
        granularity="layer",
        signal="the weights",
        export="finn",
        source="ours",
    )

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution:
        """See `brevitas_axe.methods.solvers.Solver`."""
        if quality not in ("fast", "best"):
            raise InvalidOption(f'quality is "fast" or "best", not {quality!r}.')
        if problem.significant is None:
            start = from_start(problem, quality)
            return replace(start, bias_shift=None) if quality == "fast" else start
        return nearest_in_format(problem, quality)


nearest = Nearest()
