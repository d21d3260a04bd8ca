"""The exact optimum."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.methods.allocate import Quantity, make_problem
from brevitas_axe.methods.allocate.ilp import ilp
from brevitas_axe.methods.sensitivity.scores import from_importance
from brevitas_axe.plan import Choices, LayerPrecision
from tests.methods.allocate.problems import all_assignments


def test_importance_times_bits_is_made_large_under_size_and_bit_operations() -> None:
    """The program of LRP-QViT: max Σ Ω_l·b_l under two budgets."""
    random = np.random.default_rng(2)
    options = tuple(LayerPrecision(w, a) for w in (4, 6, 8) for a in (4, 8))
    choices = Choices({f"l{i}": options for i in range(4)})
    omega = random.uniform(0, 1, 4)
    scores = from_importance(choices, dict(zip(choices.layers, omega, strict=True)))
    bits = np.array([(c.weight or 0, c.input or 0) for c in options], dtype=float)
    costs = {
        "size": Quantity(tuple(s * bits[:, 0] for s in random.uniform(1, 9, 4))),
        "bitops": Quantity(tuple(s * bits.prod(1) for s in random.uniform(1, 9, 4))),
    }
    budgets = {name: 0.6 * cost.extreme(np.max) for name, cost in costs.items()}
    problem = make_problem(scores, costs, budgets)

    def value(assignment) -> float:
        return sum(o * bits[c].sum() for o, c in zip(omega, assignment, strict=True))

    best = max(value(a) for a in all_assignments(problem) if problem.fits(a))
    assert value(ilp(problem)) == pytest.approx(best)
    assert best < 16 * omega.sum()
