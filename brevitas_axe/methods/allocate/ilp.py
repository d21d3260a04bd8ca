"""Integer linear programming: the exact optimum of additive (and pairwise) harm, by HiGHS.

Bits by integer programming after HAWQ-V3 (arXiv 2011.10680) and LRP-QViT (arXiv 2401.11243); here
jointly over weight, input and accumulator bits under any number of budgets. One binary variable per
layer and choice; a product of two layers' variables, where harm or a cost has pairs, becomes a
continuous variable whose marginals are theirs.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.methods.allocate.program import Program
from brevitas_axe.registry import Facts, check_ranges

# HiGHS may exceed a budget by its tolerance. If the solution does, it is asked again with budgets
# tightened by these relative amounts.
TIGHTENINGS = (0.0, 1e-11, 1e-9, 1e-7)


@dataclass(frozen=True)
class Ilp:
    """No assignment that fits has less harm.

    Attributes:
        gap: relative distance to the optimum at which the search may stop; 0 for the optimum.
    """

    gap: float = 0.0
    exact = True
    monotone = True
    takes_target = False
    several_metrics = False
    needs_groups = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="harm",
        export="finn",
        source="arXiv 2011.10680, 2401.11243",
    )

    def __post_init__(self) -> None:
        check_ranges(self, gap=(0, inf))

    def __call__(self, problem: Problem) -> Assignment:
        program = Program(problem)
        for tightening in TIGHTENINGS:
            assignment = program.solve(self.gap, tightening)
            if assignment is None:
                break
            if problem.fits(assignment):
                return assignment
        raise problem.refusal()


ilp = Ilp()
