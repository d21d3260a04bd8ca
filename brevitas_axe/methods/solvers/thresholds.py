"""The soft threshold of the published method."""

from __future__ import annotations

import torch
from torch import Tensor

from brevitas_axe.methods.solvers import kernels
from brevitas_axe.methods.solvers.devices import kernels_for
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.solvers.threads import over_rows


def published_threshold(problem: LayerProblem, scale: Tensor) -> Tensor:
    """How far each weight is shrunk, so that the accumulator's budget is spread over the tile.

    The centred tile is projected on the l1 ball of radius Z s, Z = (2^P - 2) / (high - low)
    (AXE, arXiv 2409.17092, section 3; the radius is that of A2Q+, arXiv 2401.10432, eq. 19). The
    threshold only shapes the solution: the clamp alone gives the guarantee, so floats may be used.

    Args:
        problem: the layer; dead inputs (zero on the Hessian's diagonal) count as zero weights.
        scale: [groups, rows, tiles].

    Returns:
        [groups, rows, tiles] in the units of the weight; zero without an accumulator limit.
    """
    threshold = torch.zeros_like(scale, memory_format=torch.contiguous_format)
    if problem.unlimited:
        return threshold
    low, high = problem.input_range
    widest = int((high - low).max())
    if widest == 0:
        return threshold
    # Without a limit the ball is as large as numbers can be.
    largest = torch.finfo(scale.dtype).max
    balls = [
        largest if bits is None else (2**bits - 2) / widest for bits in problem.tile_bit_widths
    ]
    radius = (torch.tensor(balls, dtype=scale.dtype).to(scale.device) * scale).clamp_max(largest)
    weight = problem.weight.detach().to(problem.dtype)
    alive = problem.hessian.diagonal(dim1=-2, dim2=-1) != 0
    if not bool(alive.all()):
        weight = weight * alive.unsqueeze(-2)
    weight, radius = weight.contiguous(), radius.contiguous()
    edges = torch.tensor(problem.tile_edges)
    used = kernels_for(weight.device)
    if used is not kernels:
        rows = (tensor.flatten(0, 1) for tensor in (weight, radius, threshold))
        weight, radius, result = rows
        used.l1_thresholds(weight, edges, radius, result)
        return threshold

    def work(some_groups: slice, some_rows: slice) -> None:
        part = (some_groups, some_rows)
        result = torch.empty_like(threshold[part], memory_format=torch.contiguous_format)
        kernels.l1_thresholds(
            weight[part].flatten(0, 1).contiguous().numpy(),
            edges.numpy(),
            radius[part].flatten(0, 1).contiguous().numpy(),
            result.flatten(0, 1).numpy(),
        )
        threshold[part] = result

    groups, rows, _ = scale.shape
    over_rows(work, groups, rows, weight.device)
    return threshold
