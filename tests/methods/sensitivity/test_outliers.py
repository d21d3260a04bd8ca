"""The ratio of largest to mean weight."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity import make_choices, score
from brevitas_axe.methods.sensitivity.outliers import Outliers, outlier_ratio
from brevitas_axe.registry import method
from tests.methods.sensitivity.nets import chain


def test_the_score_of_a_planted_matrix_is_exact() -> None:
    weight = torch.ones(1, 4, 3)
    weight[0, 2, 1] = -9  # largest 9, mean (3 * 1 + 9) / 4 = 3
    weight[0, :, 2] = 0
    assert outlier_ratio(weight) == 3
    assert outlier_ratio(torch.zeros(1, 4, 3)) == 0
    # Per input, not per output: a large row has no outliers.
    weight = torch.ones(1, 4, 3)
    weight[0, 2] = 9
    assert outlier_ratio(weight) == 3
    assert outlier_ratio(weight.mT) == 1


def test_the_layer_with_a_planted_outlier_is_the_important_one() -> None:
    model, x = chain(8, 8, 8, 4), torch.rand(32, 8)
    layer: Any = model[2]
    layer.weight.data[3, 5] = 50 * layer.weight.data.abs().max()
    choices = make_choices(model, (x[:1],), weight=(2, 4), input=(8,))
    names = list(choices.layers)
    harm = score(model, [x], choices, Outliers(top=1 / len(names))).harm
    assert max(names, key=lambda name: harm[name].max()) == "2"
    assert harm["2"].max() == 2  # two bits at importance 1
    assert all(0 < harm[name].max() < 0.01 for name in names if name != "2")
    exact = score(model, [x], choices, "outliers:top=0").harm
    assert exact["2"].max() == 2 * outlier_ratio(layer.weight.data.unsqueeze(0))


def test_bad_options_are_named() -> None:
    with pytest.raises(InvalidOption, match="top of Outliers must be 0 to 1"):
        method("sensitivity", "outliers:top=2")
