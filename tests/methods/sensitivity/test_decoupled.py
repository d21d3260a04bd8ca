"""Groups of layers with metrics of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity import (
    make_choices,
    score,
)
from brevitas_axe.methods.sensitivity.decoupled import Decoupled, sqnr, ssim
from brevitas_axe.model.prepare import as_batches, to_brevitas
from tests.methods.sensitivity.nets import BATCHES
from tests.model.test_prepare import Residual, X


def test_groups_are_what_the_pattern_says() -> None:
    names = ["body.attn", "body.fc", "head"]
    usual = Decoupled()
    assert usual.groups(names) == {"sqnr": ("body.fc", "head"), "ssim": ("body.attn",)}
    assert usual.groups(["head"]) == {"sqnr": ("head",)}
    assert Decoupled("^body").groups(names)["ssim"] == ("body.attn", "body.fc")
    for pattern, found in (("nothing", "none"), (".", "all")):
        with pytest.raises(InvalidOption, match=f"is found in {found} of the layers' names"):
            Decoupled(pattern).groups(names)
    with pytest.raises(InvalidOption, match="no regular expression"):
        Decoupled("(")


def test_measures_of_images() -> None:
    torch.manual_seed(0)
    image = torch.rand(2, 3, 16, 16)
    assert ssim(image, image) == pytest.approx(1)
    assert ssim(image + 0.1 * torch.randn_like(image), image) < 0.999
    assert ssim(torch.rand_like(image), image) < 0.3
    assert sqnr(image * 1.1, image) == pytest.approx(20, abs=1e-3)


def test_every_group_of_layers_has_its_own_metric() -> None:
    model = to_brevitas(Residual().eval(), as_batches(BATCHES))
    choices = make_choices(model, (X[:1],), weight=(2, 8))
    scores = score(model, BATCHES, choices, Decoupled(content="body"))
    assert scores.parts == {"sqnr": ("stem", "head"), "ssim": ("body",)}
    assert np.array_equal(scores.harm["body"], scores.metrics["ssim"]["body"])
    assert np.array_equal(scores.harm["stem"], scores.metrics["sqnr"]["stem"])
