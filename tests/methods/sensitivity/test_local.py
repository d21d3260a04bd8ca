"""The error of the budgeted solve, weighted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from brevitas_axe.methods.sensitivity import (
    make_choices,
    score,
)
from brevitas_axe.methods.sensitivity.local import Local
from brevitas_axe.plan import Choices, LayerPrecision
from tests.methods.sensitivity.nets import chain


def test_local_scores_rank_choices_as_measurements_do() -> None:
    model, x = chain(16, 32, 32, 6, seed=1), torch.rand(256, 16)
    choices = make_choices(
        model, (x[:1],), weight=(2, 3, 4), input=(3, 4, 6), accumulator=(10, 12, 16)
    )
    both = [score(model, [x], choices, name).harm for name in ("local", "measured")]
    flat = [np.concatenate([harm[name] for name in choices.layers]) for harm in both]
    ranks: Any = spearmanr(flat[0], flat[1])
    assert ranks.statistic > 0.8


def test_more_of_anything_never_hurts_the_local_score() -> None:
    model, x = chain(16, 8), torch.rand(256, 16)
    choices = Choices({"0": tuple(LayerPrecision(4, 6, p) for p in (8, 10, 12, 20))})
    harm = score(model, [x], choices, "local").harm["0"]
    assert harm[0] > 2 * harm[2]
    assert harm[2] >= harm[3] > 0


def test_some_rows_speak_for_all() -> None:
    model, x = chain(32, 64, 8, seed=2), torch.rand(256, 32)
    choices = make_choices(model, (x[:1],), weight=(2, 4), input=(4,), accumulator=(10, 14))
    some, every = (score(model, [x], choices, Local(rows=rows)).harm["0"] for rows in (8, 64))
    assert some == pytest.approx(every, rel=0.15)
    assert not np.array_equal(some, every)
