"""Weight times gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Quantity, allocate_bits, make_problem
from brevitas_axe.methods.sensitivity import (
    PlanLoss,
    Scores,
    make_case,
    make_choices,
    score,
)
from brevitas_axe.methods.sensitivity.importance import channel_importance
from brevitas_axe.methods.sensitivity.scores import from_importance
from brevitas_axe.model.prepare import as_batches, calibrate
from tests.methods.sensitivity.nets import chain


def test_the_slope_of_a_metric_that_has_none_is_refused() -> None:
    model, x = chain(6, 4), torch.rand(32, 6)
    with pytest.raises(InvalidOption, match="use 'kl' or 'cross_entropy'"):
        score(model, [x], make_choices(model, (x[:1],)), "importance", metric="mse")


class Branches(nn.Module):
    """Six layers of one shape read one input; their sum counts them very differently."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            qnn.QuantLinear(12, 6, bias=False, input_quant=Int8ActPerTensorFloat) for _ in range(6)
        )
        self.gains = (0.03, 1.0, 0.1, 3.0, 0.3, 0.01)

    def forward(self, x):
        return sum(g * layer(x) for g, layer in zip(self.gains, self.layers, strict=True))


def test_importance_beats_random_and_inverse_importance_at_equal_bits() -> None:
    torch.manual_seed(3)
    model, x = Branches().eval(), torch.rand(256, 12)
    calibrate(model, as_batches([x]))
    choices = make_choices(model, (x[:1],), weight=(4, 8))
    case = make_case(model, [x], choices)
    assert all(c.shape == (1, 6) for c in channel_importance(case, steps=4).values())
    bits = Quantity(tuple(np.array([4.0, 8.0]) for _ in case.names))
    loss = PlanLoss(case)

    def lost(scores: Scores) -> float:
        """Three layers get 8 bits, most importance per added bit first."""
        found = allocate_bits(make_problem(scores, {"bits": bits}, {"bits": 36.0}), "greedy")
        assert sorted(p.weight or 0 for p in found.plan.layers.values()) == [4, 4, 4, 8, 8, 8]
        return loss(found.plan)

    scores = score(model, [x], choices, "importance")
    most = {name: float(harm.max()) for name, harm in scores.harm.items()}
    ours = lost(scores)
    inverse = {name: 1 / value for name, value in most.items()}
    assert ours < 0.1 * lost(from_importance(choices, inverse))
    random = np.random.default_rng(0)
    others = [
        lost(from_importance(choices, dict(zip(most, random.random(6), strict=True))))
        for _ in range(8)
    ]
    assert ours <= min(others)
    assert ours < 0.5 * np.mean(others)
