"""Integers that did not come from a column-by-column solve, brought within a layer's budget."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from brevitas_axe.methods.solvers import gptq
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, chosen, expanded
from brevitas_axe.methods.solvers.sequential import run
from brevitas_axe.methods.solvers.thresholds import published_threshold


@torch.no_grad()
def rounded(problem: LayerProblem) -> LayerSolution:
    """Every weight to its nearest integer, brought within the budget; of two ways, the better."""
    plain = replace(problem, quant_mean=None, float_mean=None)
    size = expanded(problem.scale.to(problem.dtype), problem)
    nearest = problem.nearest(problem.weight.detach() / size) * size
    cut, shrunk = (within(plain, nearest, problem.scale, multiple) for multiple in (0.0, 1.0))
    return better(plain, shrunk, cut)


@torch.no_grad()
def within(problem: LayerProblem, value: Tensor, scale: Tensor, multiple: float) -> LayerSolution:
    """Values brought within the budget by error diffusion, as OPTQ does it with weights.

    Values on the grid whose rows are within stay as they are, where nothing is shrunk.

    Args:
        problem: gives moments, ranges and budget.
        value: [groups, rows, K].
        scale: of the integers, shaped like the problem's.
        multiple: of the published threshold, by which values are shrunk first.
    """
    view = replace(problem, weight=value.to(problem.dtype), scale=scale.to(problem.scale.dtype))
    size = view.tile_scale
    threshold = published_threshold(view, size) * multiple
    integers, _ = run(gptq.recursion(view, act_order=False), view, size, threshold)
    return LayerSolution(integers, view.scale)


def better(problem: LayerProblem, found: LayerSolution, other: LayerSolution) -> LayerSolution:
    """The rows with the less loss of two solutions; of all rows where they share one scale."""
    gain = other.loss(problem) - found.loss(problem)
    if problem.shared_scale and not torch.equal(found.scale, other.scale):
        gain = gain.sum().expand_as(gain)
    return chosen(gain > 0, found, other)
