"""Prefixes of an order of layers, towards a target."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Problem, Quantity
from brevitas_axe.methods.allocate.bisection import Bisection, bisection
from brevitas_axe.methods.sensitivity.augmented import interaction
from brevitas_axe.methods.sensitivity.hutchinson import block_traces
from brevitas_axe.plan import Choices, LayerPrecision

FLOAT = torch.tensor([0.90909, 0.917431, 1.1235955], dtype=torch.float64)


def _product_loss(quantized: tuple[int, ...]) -> float:
    """f(w) = ½ (Πw / Πw0 − 1)², some weights rounded to 1."""
    w = FLOAT.clone()
    w[list(quantized)] = 1.0
    return float((w.prod() / FLOAT.prod() - 1).square() / 2)


def _product_problem(target: float) -> Problem:
    w = [x.clone().requires_grad_(True) for x in FLOAT]
    loss = (torch.stack(w).prod() / FLOAT.prod() - 1).square() / 2
    traces = block_traces(loss, w, 2, torch.Generator().manual_seed(0))
    alone = [0.5 * t * float(1 - x) ** 2 for t, x in zip(traces, FLOAT, strict=True)]
    sets = [(), (0,), (1,), (2,), *combinations(range(3), 2)]
    losses = {names: _product_loss(names) for names in sets}
    zero = np.zeros((2, 2))
    pairs = {}
    for pair in combinations(range(3), 2):
        pairs[pair] = zero.copy()
        pairs[pair][1, 1] = interaction(losses, pair)
    options = (LayerPrecision(weight=8), LayerPrecision(weight=1))
    return Problem(
        Choices({f"w{i}": options for i in range(3)}),
        Quantity(tuple(np.array([0.0, s]) for s in alone), pairs),
        {"bits": Quantity(tuple(np.array([8.0, 1.0]) for _ in range(3)))},
        {},
        measure=lambda a: _product_loss(tuple(i for i, c in enumerate(a) if c)),
        target=target,
    )


def test_interactions_reorder_layers_and_admit_more_of_them() -> None:
    problem = _product_problem(0.007)
    rung = (1, 1, 1)
    layerwise = Bisection(interactions=0.0)
    assert layerwise.order(problem, rung) == [1, 0, 2]
    assert sum(layerwise(problem)) == 1
    assert bisection.order(problem, rung) == [2, 0, 1]
    assert sum(bisection(problem)) == 3


def test_a_target_is_met_or_refused() -> None:
    problem = _product_problem(0.004)
    assert problem.measure is not None
    assert problem.measure(bisection(problem)) <= 0.004
    with pytest.raises(InvalidOption, match="allow more loss"):
        bisection(_product_problem(-1.0))
    with pytest.raises(InvalidOption, match="give it a model"):
        bisection(replace(problem, measure=None))
