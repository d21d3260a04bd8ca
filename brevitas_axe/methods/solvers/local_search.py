"""Feasible local search: single integers and pairs that lower the exact loss within the budget.

Steepest descent over moves of +-1. Where no move that fits the accumulator helps, the best ones are
paired with a move that makes room for them, or that corrects them through the cross term of the
second moments. In between, the scale is fitted again in closed form, s <- s (x b) / (x H x) for
x = s q, b = w G^T.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.descent import descend
from brevitas_axe.methods.solvers.devices import search_for
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.solvers.threads import over_rows

# (smallest, largest) integer of a weight that no step may change.
_NOWHERE = (3, -3)


def improve_integers(
    problem: LayerProblem,
    wanted: Tensor,
    integers: Tensor,
    scale: Tensor,
    most_moves: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Local search from feasible integers; on the CPU where the device has no kernel for it.

    Args:
        problem: gives moments and budget.
        wanted: float64 [groups, rows, K], w G^T.
        integers: int32 [groups, rows, K], inside the budget.
        scale: [groups, rows, tiles].
        most_moves: moves per row at most.

    Returns:
        (integers, what the scales of each row are to be multiplied by [groups, rows] float64,
        loss x H x - 2 x G w of each row [groups, rows] float64).
    """
    device = integers.device
    search: Any = search_for(device)
    if search is None:
        improved, factor, loss = improve_integers(
            problem.to("cpu"), wanted.cpu(), integers.cpu(), scale.cpu(), most_moves
        )
        return improved.to(device), factor.to(device), loss.to(device)
    low, high = problem.counted_range
    tile_of = problem.tile_of_column

    def given(tensor: Tensor) -> Any:
        return tensor.contiguous().numpy() if search is descend else tensor.contiguous()

    edges = torch.tensor(problem.tile_edges).to(device)
    fixed = [given(tensor) for tensor in (edges, tile_of, problem.tile_limits)]
    # A step of 1 leads from -1 and 1 to 0: weights of one bit keep their signs.
    weight_low, weight_high = (
        given(bound.masked_fill(problem.binary_columns, place))
        for bound, place in zip(problem.weight_range, _NOWHERE, strict=True)
    )
    factor = torch.empty(integers.shape[:2], dtype=torch.float64, device=device)
    loss = torch.empty_like(factor)
    improved = torch.empty_like(integers)

    def work(some_groups: slice, some_rows: slice) -> None:
        part = (some_groups, some_rows)
        moments = problem.hessian[some_groups].to(problem.dtype).contiguous()
        start = integers[part].long()
        part_scale = scale[part].double().contiguous()
        value = (start * part_scale[:, :, tile_of]).to(moments.dtype)
        part_wanted = wanted[part].contiguous()
        part_factor, part_loss = (t[part].contiguous() for t in (factor, loss))
        search(
            given(moments),
            given(part_wanted),
            given(start),
            given(part_scale),
            given(torch.bmm(value, moments) - part_wanted),
            given(part_factor),
            given(part_loss),
            *fixed,
            given(low[some_groups]),
            given(high[some_groups]),
            weight_low,
            weight_high,
            most_moves,
            not (problem.shared_scale or problem.power_of_two),
        )
        improved[part] = start
        factor[part], loss[part] = part_factor, part_loss

    groups, rows, _ = integers.shape
    over_rows(work, groups, rows, device)
    return improved, factor, loss
