"""Clusters of scores (CPTQuant, arXiv 2412.03599): the most sensitive cluster gets most bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import numpy as np

from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.registry import Facts, check_ranges

_ITERATIONS = 100
_POWER = 3.5
_TINY = 1e-12


@dataclass(frozen=True)
class Clustering:
    """Clusters in the order of their centres take rungs of falling precision; then repair.

    Every run of neighbouring rungs is tried. Repair moves layers down until the budgets are met,
    along the order of scores, from the least
    downwards or from the greatest upwards, so that no layer ever has a lower rung than a less
    sensitive one.

    Attributes:
        clusters: how many, as 8/4/2 bits in the paper.
    """

    clusters: int = 3
    exact = False
    monotone = True
    takes_target = False
    several_metrics = False
    needs_groups = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="clusters of scores",
        export="finn",
        source="arXiv 2412.03599",
    )

    def __post_init__(self) -> None:
        check_ranges(self, clusters=(1, inf))

    def __call__(self, problem: Problem) -> Assignment:
        return problem.least_harm(self._chain(problem))

    def _chain(self, problem: Problem) -> Iterator[Assignment]:
        scores = np.array([unit_score(problem, unit) for unit in problem.units])
        count = min(self.clusters, len(problem.ladder))
        labels = cluster(scores, count)
        ascending = np.argsort(scores, kind="stable")
        # Rung 0 is the widest: the cluster with the greatest centre gets it.
        start = count - 1 - labels
        for first in range(len(problem.ladder) - count + 1):
            rungs = problem.ladder[first : first + count]
            yield _assigned(problem, rungs, start)
            for order, step, last in ((ascending, 1, count - 1), (ascending[::-1], -1, 0)):
                level = start.copy()
                for unit in order:
                    while level[unit] != last:
                        level[unit] += step
                        yield _assigned(problem, rungs, level)


def unit_score(problem: Problem, unit: tuple[int, ...]) -> float:
    """How much the choice matters: span of the harm of all layers of a unit."""
    return float(sum(np.ptp(problem.harm.single[i]) for i in unit))


def cluster(scores: np.ndarray, count: int) -> np.ndarray:
    """K-harmonic-means clusters of numbers, labelled by ascending centre.

    Args:
        scores: float64 [n].
        count: number of clusters.

    Returns:
        int64 [n] in 0 … count - 1.
    """
    centres = np.quantile(scores, (np.arange(count) + 0.5) / count)
    for _ in range(_ITERATIONS):
        distance = np.abs(scores[:, None] - centres) + _TINY
        # Zhang's update: membership times weight, d^(-p-2) / (Σ d^-p)^2, scaled against overflow.
        ratio = distance.min(1, keepdims=True) / distance
        weight = ratio ** (_POWER + 2) / distance.min(1, keepdims=True) ** (2 - _POWER)
        weight = weight / (ratio**_POWER).sum(1, keepdims=True) ** 2
        total = weight.sum(0)
        moved = np.where(
            total > 0, (weight * scores[:, None]).sum(0) / np.where(total, total, 1), centres
        )
        if np.allclose(moved, centres, rtol=1e-9, atol=0):
            break
        centres = moved
    return np.abs(scores[:, None] - np.sort(centres)).argmin(1)


def _assigned(problem: Problem, rungs: list[Assignment], level: np.ndarray) -> Assignment:
    chosen = [0] * len(problem.names)
    for unit, rung in zip(problem.units, level, strict=True):
        for i in unit:
            chosen[i] = rungs[rung][i]
    return tuple(chosen)


clustering = Clustering()
