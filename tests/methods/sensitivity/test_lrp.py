"""Relevance of layers."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.methods.sensitivity import (
    Trials,
    make_case,
    make_choices,
)
from brevitas_axe.methods.sensitivity.lrp import relevances
from brevitas_axe.model.prepare import as_batches, to_brevitas
from tests.methods.sensitivity.nets import BATCHES, chain
from tests.model.test_prepare import Residual, X


def test_relevance_is_conserved_in_a_net_without_biases() -> None:
    model = chain(8, 16, 16, 4)
    x = torch.rand(64, 8)
    found = relevances(make_case(model, [x], make_choices(model, (x[:1],))), Trials())
    assert found == pytest.approx(dict.fromkeys(("0", "2", "4"), 1.0), rel=1e-5)


def test_branches_share_relevance() -> None:
    model = to_brevitas(Residual().eval(), as_batches(BATCHES))
    found = relevances(make_case(model, BATCHES, make_choices(model, (X[:1],))), Trials())
    assert found["body"] < found["head"]
    assert found["stem"] > found["body"]


def test_published_rules_are_those_of_ours_where_nothing_is_added_or_multiplied() -> None:
    model = chain(8, 16, 16, 4)
    x = torch.rand(64, 8)
    case = make_case(model, [x], make_choices(model, (x[:1],)))
    assert relevances(case, Trials(), True) == pytest.approx(relevances(case, Trials()), rel=1e-5)
    model = to_brevitas(Residual().eval(), as_batches(BATCHES))
    case = make_case(model, BATCHES, make_choices(model, (X[:1],)))
    ours, published = relevances(case, Trials()), relevances(case, Trials(), True)
    assert published["head"] == pytest.approx(ours["head"])
    assert published["body"] != pytest.approx(ours["body"], rel=1e-3)
