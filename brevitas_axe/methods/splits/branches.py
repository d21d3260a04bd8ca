"""The branches of a layer as one problem for the solver.

The branches of a layer are stored apart and solved as one: their columns stand side by side in one
`LayerProblem`, so that each branch corrects the errors of the others. Accumulators stay apart,
since tiles do not cross the borders of branches, and every tile has its own width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from brevitas_axe.accumulator import InputRange
from brevitas_axe.methods.solvers.problem import (
    UNLIMITED,
    LayerProblem,
    LayerSolution,
    chosen,
    with_bias_shift,
)
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.model.moments import Statistics

Solve = Callable[[Sequence[LayerProblem]], Sequence[LayerSolution]]
Begin = Callable[[LayerProblem], LayerSolution]


def joint(parts: Sequence[LayerProblem], moments: Statistics) -> LayerProblem:
    """One problem whose columns are those of all branches, in their order.

    A solver multiplies the scales of a row by one factor, which keeps those of one branch equal.

    Args:
        parts: the branches; equal groups and rows.
        moments: of the inputs of all branches, side by side.
    """
    edges = [0, *accumulate(part.columns for part in parts)]
    widths = [bits for part in parts for bits in part.tile_bit_widths]
    biased = any(part.quant_mean is not None for part in parts)
    ranges = [(*part.weight_range, *part.input_range) for part in parts]
    weight_low, weight_high, input_low, input_high = (
        torch.cat(bounds, -1) for bounds in zip(*ranges, strict=True)
    )
    return LayerProblem(
        weight=torch.cat([part.weight for part in parts], -1),
        hessian=moments["hessian"],
        scale=torch.cat([_tile_scale(part, part.scale) for part in parts], -1),
        weight_low=weight_low,
        weight_high=weight_high,
        input_low=input_low,
        input_high=input_high,
        cross=moments["cross"],
        quant_mean=moments["quant_mean"] if biased else None,
        float_mean=moments["float_mean"] if biased else None,
        accumulator_bit_width=torch.tensor(
            [UNLIMITED if bits is None else bits for bits in widths]
        ),
        tile_starts=tuple(
            edge + start
            for edge, part in zip(edges, parts, strict=False)
            for start in part.tile_edges[:-1]
        ),
        shared_scale=any(part.shared_scale for part in parts),
        power_of_two=any(part.power_of_two for part in parts),
        binary=torch.cat([part.binary_tiles.cpu() for part in parts]),
        name=" + ".join(part.name for part in parts if part.name),
    )


def _tile_scale(part: LayerProblem, scale: Tensor) -> Tensor:
    """[groups, rows] or [groups, rows, tiles] to [groups, rows, tiles]."""
    return scale if scale.ndim == 3 else scale.unsqueeze(-1).expand(-1, -1, part.tiles)


def together(solutions: Sequence[LayerSolution], parts: Sequence[LayerProblem]) -> LayerSolution:
    """Joins the branches' solutions to one of the joint problem, without a shift of the bias."""
    scales = [_tile_scale(p, s.scale) for p, s in zip(parts, solutions, strict=True)]
    return LayerSolution(
        torch.cat([solution.integers for solution in solutions], -1), torch.cat(scales, -1)
    )


def apart(solution: LayerSolution, parts: Sequence[LayerProblem]) -> tuple[LayerSolution, ...]:
    """Cuts a solution of the joint problem into one per branch, with scales of their shapes.

    The shift of the bias goes to the first branch that has a bias.
    """
    columns = [part.columns for part in parts]
    tiles = [part.tiles for part in parts]
    biased = next((i for i, part in enumerate(parts) if part.quant_mean is not None), None)
    return tuple(
        LayerSolution(
            integers.contiguous(),
            (scale if part.scale.ndim == 3 else scale[:, :, 0]).contiguous(),
            solution.bias_shift if index == biased else None,
        )
        for index, (part, integers, scale) in enumerate(
            zip(
                parts,
                solution.integers.split(columns, -1),
                solution.scale.split(tiles, -1),
                strict=True,
            )
        )
    )


def parts_of_moments(moments: Statistics, sizes: Sequence[int]) -> list[Statistics]:
    """Cuts the moments of all branches into one per branch; sizes are numbers of columns."""
    edges = [0, *accumulate(sizes)]
    return [_at(moments, slice(*pair)) for pair in pairwise(edges)]


def _at(moments: Statistics, columns: slice | Tensor) -> Statistics:
    def matrix(whole: Tensor | None) -> Tensor | None:
        return None if whole is None else whole[:, columns][:, :, columns].contiguous()

    def vector(whole: Tensor | None) -> Tensor | None:
        return None if whole is None else whole[:, columns]

    hessian = matrix(moments["hessian"])
    assert hessian is not None
    return {
        "hessian": hessian,
        "cross": matrix(moments["cross"]),
        "quant_mean": vector(moments["quant_mean"]),
        "float_mean": vector(moments["float_mean"]),
    }


@torch.no_grad()
def solve_branches(
    parts: Sequence[LayerProblem], moments: Statistics, solve: Solve, begin: Begin | None = None
) -> tuple[tuple[LayerSolution, ...], LayerProblem, LayerSolution]:
    """Solves the branches of a layer as one problem; never worse than apart, row by row.

    Each branch is solved by itself first. The joint solution has to beat that, and its search
    starts from those scales.

    Args:
        parts: the branches, as they would be solved by themselves.
        moments: of the inputs of all branches, side by side.
        solve: gives one solution per problem.
        begin: gives one more solution of the joint problem, which counts where it is better, for
            branches with start scales that were chosen for them.

    Returns:
        (one solution per branch, the joint problem, the joint solution).
    """
    whole = joint(parts, moments)
    kept = with_bias_shift(whole, together(solve(parts), parts))
    kept = _better(whole, solve([replace(whole, scale=kept.scale)])[0], kept)
    if begin is not None:
        kept = _better(whole, begin(whole), kept)
    return apart(kept, parts), whole, kept


def _better(problem: LayerProblem, found: LayerSolution, other: LayerSolution) -> LayerSolution:
    """The better rows of two solutions, with their shift of the bias."""
    better = found.loss(problem) < other.loss(problem)
    if problem.shared_scale:
        # One scale for all rows: it changes for all or for none.
        better = (found.loss(problem).sum() < other.loss(problem).sum()).expand_as(better)
    return with_bias_shift(problem, chosen(better, found, other))


def branch_problems(
    problem: LayerProblem, branches: Sequence[Branch]
) -> tuple[tuple[LayerProblem, ...], Statistics]:
    """Branches that add up as problems of their own, and the moments of all their inputs.

    Args:
        problem: the layer that they were split from; where a branch's precision is None, the
            layer's value counts.
        branches: without rows.
    """
    columns = torch.cat([branch.columns for branch in branches])
    moments: Statistics = {
        "hessian": problem.hessian,
        "cross": problem.cross,
        "quant_mean": problem.quant_mean,
        "float_mean": problem.float_mean,
    }
    moments = _at(moments, columns)
    pieces = parts_of_moments(moments, [len(branch.columns) for branch in branches])
    parts = []
    for index, (branch, piece) in enumerate(zip(branches, pieces, strict=True)):
        if index:
            piece["quant_mean"] = piece["float_mean"] = None
        parts.append(_branch_problem(problem, branch, piece))
    return tuple(parts), moments


def _branch_problem(problem: LayerProblem, branch: Branch, moments: Statistics) -> LayerProblem:
    precision = branch.precision
    weight_low, weight_high = (bound[branch.columns] for bound in problem.weight_range)
    input_low, input_high = (bound[:, branch.columns] for bound in problem.input_range)
    if precision.weight_bits is not None:
        most = max(2 ** (precision.weight_bits - 1) - 1, 1)
        weight_low, weight_high = (torch.full_like(weight_low, q) for q in (-most, most))
    if precision.input_bits is not None:
        input_range = InputRange.from_bits(precision.input_bits, bool((input_low < 0).any()))
        input_low = torch.full_like(input_low, input_range.low)
        input_high = torch.full_like(input_high, input_range.high)
    scale, binary = branch.scale, precision.weight_bits == 1
    if scale is None:
        size = branch.weight.abs()
        scale = size.mean(-1) if binary else size.amax(-1) / int(weight_high.max())
        scale = scale.clamp_min(torch.finfo(scale.dtype).tiny)
    return LayerProblem(
        weight=branch.weight.unsqueeze(0),
        scale=scale.unsqueeze(0),
        weight_low=weight_low,
        weight_high=weight_high,
        input_low=input_low,
        input_high=input_high,
        accumulator_bit_width=precision.accumulator,
        tile_size=precision.tile,
        binary=binary,
        name=branch.name,
        **moments,
    )
