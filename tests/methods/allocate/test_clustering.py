"""Clusters of scores and the bits they get."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from brevitas_axe.methods.allocate import Problem, Quantity
from brevitas_axe.methods.allocate.clustering import cluster, clustering
from brevitas_axe.plan import Choices, LayerPrecision


def test_clusters_are_found_and_labelled_by_their_centres() -> None:
    scores = np.array([5.1, 0.1, 100.0, 0.12, 5.0, 98.0, 0.09])
    assert cluster(scores, 3).tolist() == [1, 0, 2, 0, 1, 2, 0]
    for order in list(permutations(range(7)))[::500]:
        assert np.array_equal(cluster(scores[list(order)], 3), cluster(scores, 3)[list(order)])


def test_clustering_gives_more_bits_to_higher_scores_whatever_the_order() -> None:
    scores = np.array([3.0, 0.2, 8.0, 1.0, 0.05])
    options = tuple(LayerPrecision(weight=bits) for bits in (8, 4, 2))

    def problem(order: list[int], limit: float) -> Problem:
        harm = tuple(scores[i] * np.array([0.0, 0.1, 1.0]) for i in order)
        bits = tuple(np.array([8.0, 4.0, 2.0]) for _ in order)
        choices = Choices({f"l{i}": options for i in order})
        return Problem(choices, Quantity(harm), {"bits": Quantity(bits)}, {"bits": limit})

    for limit in (10, 16, 20, 26, 32, 40):
        natural = problem([0, 1, 2, 3, 4], limit)
        plan = natural.plan(clustering(natural))
        by_score = [plan[f"l{i}"].weight or 0 for i in np.argsort(scores)]
        assert by_score == sorted(by_score)
        mixed = problem([3, 1, 4, 0, 2], limit)
        assert dict(mixed.plan(clustering(mixed)).layers) == dict(plan.layers)
