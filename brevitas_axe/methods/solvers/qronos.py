"""Qronos, with or without an accumulator budget.

Zhang et al., "Qronos: Correcting the Past by Shaping the Future" (arXiv 2505.11695); the budget is
AXE, arXiv 2409.17092.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.corrected import corrected_recursion
from brevitas_axe.methods.solvers.levels import finish
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.sequential import Recursion
from brevitas_axe.registry import Facts

# Damping as a share of the largest eigenvalue, as in the authors' code.
DAMPING = 1e-6
POWER_ITERATIONS = 30


@dataclass(frozen=True)
class Qronos:
    """Qronos under an accumulator budget."""

    uses_float_inputs = True
    rounds_floats = True
    facts = Facts(
        kind="–",
        granularity="layer",
        signal="inputs, quantized and float",
        export="finn",
        source="arXiv 2505.11695, 2409.17092",
    )

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution:
        """See `brevitas_axe.methods.solvers.Solver`."""
        return finish(problem, recursion(problem, act_order), quality)


def recursion(problem: LayerProblem, act_order: bool) -> Recursion:
    """Qronos as a recursion over columns."""
    damping = DAMPING * _largest_eigenvalue(problem.hessian)
    return corrected_recursion(problem, act_order, damping, plain_first=True)[0]


def _largest_eigenvalue(moments: Tensor) -> Tensor:
    """[groups] of [groups, K, K], by power iteration."""
    vector = torch.ones_like(moments[..., :1])
    for _ in range(POWER_ITERATIONS):
        vector = moments @ (vector / vector.norm(dim=1, keepdim=True).clamp_min(1e-30))
    return vector.norm(dim=(1, 2))


qronos = Qronos()
