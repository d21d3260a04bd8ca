"""Rows of layers as tasks of joblib: threads, processes, or the machines of a Dask or Ray cluster.

Rows share the layer's second moments and nothing else. They are cut in pieces of a fixed size, each
solved by one thread, so that the integers do not depend on who solves them or how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from joblib import Parallel, delayed

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.protocol import Solver, for_floats

# Every task factorizes the layer's moments again; with many rows per task that costs little.
ROWS_PER_TASK = 512


def solve_layers(
    problems: Sequence[LayerProblem],
    solver: Solver,
    workers: int,
    *,
    act_order: bool,
    quality: Quality,
) -> list[LayerSolution]:
    """Solves layers through the active joblib backend (`joblib.parallel_config`), all at once.

    Args:
        problems: layers that do not wait for each other; one with a shared scale is one task.
        solver: for every piece; at the top level of a module, so that processes can find it.
        workers: tasks at a time; -1 for as many as the backend has.
        act_order, quality: see `Solver`.

    Returns:
        One solution per layer.

    Raises:
        InvalidOption: workers is 0.
    """
    if workers == 0:
        raise InvalidOption("workers is 0; give the number of tasks at a time, or -1 for all.")
    pieces = [_pieces(problem) for problem in problems]
    threads = torch.get_num_threads()
    try:
        tasks = (delayed(_solve)(part, solver, act_order, quality) for p in pieces for part in p)
        solved: Iterator[Any] = iter(Parallel(n_jobs=workers)(tasks))
    finally:
        torch.set_num_threads(threads)
    return [_joined(list(islice(solved, len(parts)))) for parts in pieces]


def _pieces(problem: LayerProblem) -> list[LayerProblem]:
    rows = problem.weight.shape[1]
    step = rows if problem.shared_scale else ROWS_PER_TASK
    return [
        replace(
            problem,
            weight=problem.weight[:, start : start + step],
            scale=problem.scale[:, start : start + step],
        )
        for start in range(0, rows, step)
    ]


def _joined(solved: list[LayerSolution]) -> LayerSolution:
    shifts = [part.bias_shift for part in solved if part.bias_shift is not None]
    return LayerSolution(
        torch.cat([part.integers for part in solved], 1),
        torch.cat([part.scale for part in solved], 1),
        torch.cat(shifts, 1) if shifts else None,
    )


def _solve(
    problem: LayerProblem, solver: Solver, act_order: bool, quality: Quality
) -> LayerSolution:
    torch.set_num_threads(1)
    return solve_layer(problem, solver, act_order, quality)


def solve_layer(
    problem: LayerProblem, solver: Solver, act_order: bool, quality: Quality
) -> LayerSolution:
    """One layer here, by the solver, or by one that rounds to floats where it has these."""
    if problem.significant is not None:
        solver = for_floats(solver)
    return solver(problem, act_order=act_order, quality=quality)
