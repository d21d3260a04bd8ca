"""One precision for all layers: the one that fits with the least harm."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Uniform:
    """What every other allocator has to beat."""

    exact = False
    monotone = True
    takes_target = False
    several_metrics = False
    needs_groups = False
    facts = Facts(
        kind="MPW+UPA",
        granularity="model",
        signal="harm",
        export="finn",
        source="ours",
        baseline=True,
    )

    def __call__(self, problem: Problem) -> Assignment:
        return problem.least_harm(problem.uniform)


uniform = Uniform()
