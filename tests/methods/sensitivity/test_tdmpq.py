"""The loss under a perturbation, and its first order."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.sensitivity import (
    Metric,
    make_case,
    make_choices,
    score,
)
from brevitas_axe.methods.sensitivity.tdmpq import Tdmpq
from tests.methods.sensitivity.nets import chain


def test_the_first_order_is_exact_on_a_linear_loss() -> None:
    torch.manual_seed(0)
    weights = torch.randn(32, 4)
    metric = Metric(
        "linear", lambda out, real, item: (out * weights).sum(), slope=lambda real, item, g: weights
    )
    model, x = chain(6, 4), torch.rand(32, 6)
    choices = make_choices(model, (x[:1],), weight=(2, 3, 4))
    exact = score(model, [x], choices, Tdmpq(), metric=metric).harm["0"]
    first = score(model, [x], choices, Tdmpq(first_order=True), metric=metric).harm["0"]
    case = make_case(model, [x], choices, metric)
    weight = case.layers()["0"].weight.detach()
    for harm, choice in zip(first, choices.layers["0"], strict=True):
        step = case.rounded("0", choice)[0] - weight
        assert harm == pytest.approx(abs(float((weights.T @ x * step).sum())), rel=1e-4)
    assert first == pytest.approx(exact, rel=1e-3)
    assert first[0] > 0
