"""The branches of one layer, solved as one problem and described as one sum."""

from __future__ import annotations

from functools import partial

from brevitas_axe.methods.solvers.grid_start import from_start
from brevitas_axe.methods.solvers.problem import LayerSolution, Quality
from brevitas_axe.methods.splits.branches import Solve, parts_of_moments, solve_branches
from brevitas_axe.model.moments import Moments
from brevitas_axe.plan import Plan
from brevitas_axe.run.solve.branches import Branches
from brevitas_axe.run.solve.layer_inputs import layer_problem
from brevitas_axe.run.solve.log import describe


def solve_jointly(
    group: Branches, plan: Plan, moments: Moments, quality: Quality, solve: Solve
) -> dict[str, tuple[LayerSolution, dict]]:
    """One solution per branch with its log entry; the errors in it are those of the sum.

    Args:
        group: the branches.
        plan: their widths.
        moments: of the inputs of all of them, side by side.
        quality: "best" moves the mean error to the bias, and searches on from start scales.
        solve: gives one solution per problem.
    """
    statistics = moments.finish(shrink=quality == "best")
    problems = []
    pieces = parts_of_moments(statistics, group.columns)
    chosen = False
    for (name, layer), piece in zip(group.layers.items(), pieces, strict=True):
        if layer.bias is None or quality == "fast":
            piece["quant_mean"] = piece["float_mean"] = None
        scale = group.whole.scale_of(name.rpartition(".")[2])
        if scale is not None and scale.ndim == 2 and layer.weight_quant.scale_tile is None:
            scale = None  # one scale per row
        chosen = chosen or scale is not None
        problems.append(layer_problem(name, layer, plan[name], piece, scale))
    begin = partial(from_start, quality=quality) if chosen else None
    solutions, whole, found = solve_branches(problems, statistics, solve, begin)
    entry = describe(whole, found)
    errors = {key: entry[key] for key in ("error_rounded", "error")}
    return {
        name: (solution, {"samples": moments.samples, **describe(problem, solution), **errors})
        for name, problem, solution in zip(group.layers, problems, solutions, strict=True)
    }
