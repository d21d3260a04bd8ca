"""OPTQ (GPTQ) under an accumulator budget (A2GPTQ).

Frantar et al., arXiv 2210.17323; the budget is AXE, arXiv 2409.17092. Solved in the form of LDLQ,
which QuIP (arXiv 2307.13304, theorem 6) shows to be the same: with H + damping = M M^T, M upper
triangular, column t gets w_t + sum_{j<t} (w_j - s q_j) M_jt / M_tt. That needs one Cholesky
factorization, and no inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_axe.methods.solvers.factor import damped_factor
from brevitas_axe.methods.solvers.levels import finish
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.sequential import (
    Recursion,
    columns_first,
    reordered,
    storage_order,
)
from brevitas_axe.registry import Facts

# Share of the mean diagonal that is added to the diagonal, as in the authors' code.
DAMPING = 0.01
# A dead input's diagonal there is 1 where the moments are 2/n X X^T.
DEAD_DIAGONAL = 0.5


@dataclass(frozen=True)
class Gptq:
    """OPTQ under an accumulator budget.

    The published algorithm looks only at the quantized inputs (`problem.cross` is not used), and
    does not pass on what the threshold and the budget took from a weight.
    """

    uses_float_inputs = False
    rounds_floats = True
    facts = Facts(
        kind="–",
        granularity="layer",
        signal="quantized inputs",
        export="finn",
        source="arXiv 2210.17323, 2409.17092",
    )

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution:
        """See `brevitas_axe.methods.solvers.Solver`."""
        return finish(problem, recursion(problem, act_order), quality)


def recursion(problem: LayerProblem, act_order: bool) -> Recursion:
    """OPTQ as a recursion over columns, stored in reverse: M is a flipped Cholesky factor."""
    order = storage_order(problem, act_order, backward=True)
    hessian = reordered(problem.hessian, order, problem.dtype)
    diagonal = hessian.diagonal(dim1=-2, dim2=-1)
    dead = diagonal == 0
    diagonal.masked_fill_(dead, DEAD_DIAGONAL)
    factor, _ = damped_factor(hessian, DAMPING * diagonal.mean(-1))
    pivot = factor.diagonal(dim1=-2, dim2=-1).masked_fill(dead, 0)
    weight = columns_first(problem.weight, order, problem.dtype)
    return Recursion(order, True, factor, pivot, weight, weight, forgets_shrinkage=True)


gptq = Gptq()
