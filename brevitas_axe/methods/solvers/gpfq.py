"""GPFQ under an accumulator budget (A2GPFQ).

Lybrand and Saab, "A Greedy Algorithm for Quantizing Neural Networks", JMLR 2021, in the form of
Zhang, Zhou and Saab (arXiv 2201.11113); its budget is AXE, arXiv 2409.17092. With second moments
H and G, column t gets (sum_{j<=t} G_tj w_j - sum_{j<t} H_tj s q_j) / H_tt.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.levels import finish
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.sequential import (
    Recursion,
    columns_first,
    reordered,
    storage_order,
)
from brevitas_axe.registry import Facts

# Rows of the lower triangle that are multiplied at once.
STRIP = 256


@dataclass(frozen=True)
class Gpfq:
    """GPFQ under an accumulator budget."""

    uses_float_inputs = True
    rounds_floats = True
    facts = Facts(
        kind="–",
        granularity="layer",
        signal="inputs, quantized and float",
        export="finn",
        source="JMLR 2021, arXiv 2201.11113, 2409.17092",
    )

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution:
        """See `brevitas_axe.methods.solvers.Solver`."""
        return finish(problem, recursion(problem, act_order), quality)


def recursion(problem: LayerProblem, act_order: bool) -> Recursion:
    """GPFQ as a recursion over columns."""
    order = storage_order(problem, act_order, backward=False)
    weight = columns_first(problem.weight, order, problem.dtype)
    hessian = reordered(problem.hessian, order, problem.dtype)
    pivot = hessian.diagonal(dim1=-2, dim2=-1)
    if problem.cross is None:
        # Equal inputs: the sum over the past is that of the errors alone.
        return Recursion(order, False, hessian, pivot, weight, weight)
    base = _lower_product(reordered(problem.cross, order, problem.dtype), weight)
    base /= torch.where(pivot == 0, 1, pivot).unsqueeze(-1)
    return Recursion(order, False, hessian, pivot, base, torch.zeros_like(base))


def _lower_product(matrix: Tensor, weight: Tensor) -> Tensor:
    """tril(matrix) @ weight for [groups, K, K] and [groups, K, rows], skipping the zeros."""
    product = torch.empty_like(weight)
    for start in range(0, weight.shape[1], STRIP):
        stop = min(start + STRIP, weight.shape[1])
        strip = matrix[:, start:stop, :stop].tril(start)
        product[:, start:stop] = strip @ weight[:, :stop]
    return product


gpfq = Gpfq()
