"""The column-by-column solve that GPFQ, OPTQ and Qronos share.

All of them decide one column after the other,

    c_t = base_t - (1 / pivot_t) sum_{j decided before t} coupling_tj (s q_j - target_j),
    q_t = round(shrunk c_t, clipped to what the accumulator has room for),

and differ only in base, target, coupling and pivot: a `Recursion`. It is solved in blocks: the sum
over earlier blocks is a matrix product, the rest runs in a kernel (see devices.py). On other
devices than the CPU, whose matrix products want to be larger, the errors of several blocks are
passed on together to all later columns.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from brevitas_axe.errors import NonFiniteValues
from brevitas_axe.methods.solvers import kernels
from brevitas_axe.methods.solvers.devices import kernels_for
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.solvers.threads import over_rows

# Columns per block: wide enough for an efficient matrix product, and the kernel's share is small.
BLOCK = 64
# Columns whose errors are passed on together on other devices than the CPU.
SUPER_BLOCK = 512


@dataclass(frozen=True, eq=False)
class Recursion:
    """What one algorithm feeds to the solve; columns are in storage order.

    Attributes:
        order: int64 [groups, K], the input column stored at each position; None if natural.
        backward: whether the last position is decided first.
        coupling: [groups, K, K]; read only between a column and those decided before it.
        pivot: [groups, K]; zero marks a dead input, whose integer is 0.
        base: [groups, K, rows].
        target: [groups, K, rows].
        forgets_shrinkage: whether the error that is passed on leaves out what threshold and
            budget took away, as the published A2GPTQ does.
    """

    order: Tensor | None
    backward: bool
    coupling: Tensor
    pivot: Tensor
    base: Tensor
    target: Tensor
    forgets_shrinkage: bool = False


def storage_order(problem: LayerProblem, act_order: bool, backward: bool) -> Tensor | None:
    """Input column at each position, int64 [groups, K]; None where it is the natural order."""
    if not act_order and not backward:
        return None
    if act_order:
        diagonal = problem.hessian.diagonal(dim1=-2, dim2=-1)
        order = torch.argsort(diagonal, dim=-1, descending=True)
    else:
        order = torch.arange(problem.columns, device=problem.weight.device)
        order = order.expand(problem.weight.shape[0], -1)
    return order.flip(-1) if backward else order


def columns_first(matrix: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[groups, rows, K] to [groups, K, rows] in storage order, contiguous."""
    matrix = matrix.detach().to(dtype).mT.contiguous()
    return matrix if order is None else matrix[_each_group(order), order]


def reordered(moments: Tensor, order: Tensor | None, dtype: torch.dtype) -> Tensor:
    """[groups, K, K] with rows and columns in storage order; not copied in the natural order."""
    moments = moments.detach().to(dtype)
    if order is None:
        return moments
    if bool((order.diff(dim=-1) == -1).all()):
        return moments.flip((-2, -1))  # four times faster than the general case
    group = _each_group(order).unsqueeze(-1)
    return moments[group, order.unsqueeze(-1), order.unsqueeze(-2)]


def _each_group(order: Tensor) -> Tensor:
    """[groups, 1] index that goes with an order."""
    return torch.arange(len(order), device=order.device).unsqueeze(-1)


def run(
    recursion: Recursion, problem: LayerProblem, scale: Tensor, threshold: Tensor
) -> tuple[Tensor, Tensor]:
    """Solves one recursion for all rows.

    Args:
        recursion: the algorithm's matrices.
        problem: gives tiles, ranges and the accumulator's width.
        scale, threshold: [groups, rows, tiles].

    Returns:
        integers: int32 [groups, rows, K], inside the accumulator's budget.
        residual: float64 [groups, rows], sum over columns of (pivot_t (c_t - s q_t))^2.

    Raises:
        NonFiniteValues: the recursion overflowed.
    """
    groups, columns, rows = recursion.base.shape
    device = recursion.base.device
    if bool(problem.binary_tiles.any()):
        # Magnitudes beyond every integer are cut to the largest one, which is 1, whatever the
        # weight: its sign alone is left. What was cut is no shrinkage to be forgotten.
        beyond = -torch.finfo(threshold.dtype).max / 4
        threshold = threshold.masked_fill(problem.binary_tiles, beyond)
        recursion = replace(recursion, forgets_shrinkage=False)
    integers = torch.empty(groups, rows, columns, dtype=torch.int32, device=device)
    residual = torch.zeros(groups, rows, dtype=torch.float64, device=device)

    def work(some_groups: slice, some_rows: slice) -> None:
        part = (some_groups, some_rows)
        _run_part(
            recursion, problem, scale[part], threshold[part], part, integers[part], residual[part]
        )

    over_rows(work, groups, rows, device)
    if not residual.isfinite().all():
        raise NonFiniteValues("The column-by-column solve overflowed: the inputs are too large.")
    return integers, residual


def _run_part(
    recursion: Recursion,
    problem: LayerProblem,
    scale: Tensor,
    threshold: Tensor,
    part: tuple[slice, slice],
    integers: Tensor,
    residual: Tensor,
) -> None:
    """Solves some groups and rows; writes their integers and residual."""
    some_groups, some_rows = part
    base = recursion.base[some_groups, :, some_rows].contiguous()
    target = recursion.target[some_groups, :, some_rows].contiguous()
    coupling = recursion.coupling[some_groups]
    groups, columns, rows = base.shape
    low, high = (bound[some_groups] for bound in problem.counted_range)
    order = recursion.order
    if order is None:
        order = torch.arange(columns, device=base.device).expand(recursion.base.shape[0], -1)
    order = order[some_groups]
    room = problem.tile_limits.unsqueeze(-1).repeat(groups, 1, rows)
    error = torch.empty_like(base)
    chosen = torch.empty_like(base, dtype=torch.int32)
    lost = torch.zeros_like(base[:, 0], dtype=torch.float64)
    used = kernels_for(base.device)
    on_cpu = used is kernels

    def given(tensor: Tensor) -> Any:
        return tensor.numpy() if on_cpu else tensor

    read = (
        base,
        target,
        problem.tile_of_column[order],
        scale.mT,
        threshold.mT,
        low.gather(1, order),
        high.gather(1, order),
        *(bound[order] for bound in problem.weight_range),
    )
    read = [given(tensor.contiguous()) for tensor in read]
    written = [given(tensor) for tensor in (room, room.clone(), chosen, error, lost)]
    near = given(_within_blocks(coupling))
    pivot = given(recursion.pivot[some_groups].contiguous())
    backward, forgets = recursion.backward, recursion.forgets_shrinkage
    for block, carried in blocks_of(coupling, error, columns if on_cpu else SUPER_BLOCK, backward):
        start, stop = block.start, block.stop
        used.quantize_block(
            start, stop, backward, forgets, near, pivot, given(carried), *read, *written
        )
    if recursion.order is not None:
        chosen = chosen[_each_group(order), order.argsort(-1)]
    integers.copy_(chosen.mT)
    residual.copy_(lost)


def _within_blocks(coupling: Tensor) -> Tensor:
    """[groups, K, BLOCK]: the couplings of each column with the columns of its block."""
    groups, columns, _ = coupling.shape
    near = coupling.new_zeros(groups, columns, min(BLOCK, columns))
    full = columns - columns % BLOCK
    if full:
        square = coupling[:, :full, :full].unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK))
        # [groups, column of the block, decided column of the block, block] before it is moved.
        near[:, :full] = square.diagonal(dim1=1, dim2=3).permute(0, 3, 2, 1).flatten(1, 2)
    if full < columns:
        near[:, full:, : columns - full] = coupling[:, full:, full:].mT
    return near


def blocks_of(
    coupling: Tensor, error: Tensor, together: int, backward: bool
) -> Iterator[tuple[slice, Tensor]]:
    """Each block, and what the errors of earlier blocks add up to for it, [groups, block, rows].

    Args:
        coupling: [groups, K, K].
        error: [groups, K, rows]; that of a block is written before the next block is asked for.
        together: columns whose errors are passed on together.
        backward: whether the last block comes first.
    """
    columns = error.shape[1]
    earlier: Tensor | None = None
    for first, last in _ranges(0, columns, together, backward):
        for start, stop in _ranges(first, last, BLOCK, backward):
            block, done = slice(start, stop), slice(first, start)
            if backward:
                done = slice(stop, last)
            factors = coupling[:, block, done], error[:, done]
            if earlier is None:
                yield block, torch.bmm(*factors)
            else:
                yield block, torch.baddbmm(earlier[:, block], *factors)
        rest = slice(0, first) if backward else slice(last, columns)
        if rest.start < rest.stop:
            earlier = torch.zeros_like(error) if earlier is None else earlier
            earlier[:, rest].baddbmm_(coupling[:, rest, first:last], error[:, first:last])


def _ranges(first: int, last: int, length: int, backward: bool) -> list[tuple[int, int]]:
    """[first, last) in pieces of a length, the last of them short."""
    pieces = [(start, min(start + length, last)) for start in range(first, last, length)]
    return pieces[::-1] if backward else pieces
