"""Relevance times measured sensitivity, from its two factors."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from brevitas_axe.methods.sensitivity import Trials, make_case, make_choices, score
from brevitas_axe.methods.sensitivity.augmented import Augmented, interaction, pair_losses
from brevitas_axe.methods.sensitivity.lrp import relevances
from brevitas_axe.model.prepare import as_batches, to_brevitas
from tests.methods.sensitivity.nets import BATCHES
from tests.model.test_prepare import Residual, X


@pytest.fixture(scope="module")
def model():
    return to_brevitas(Residual().eval(), as_batches(BATCHES))


@pytest.fixture(scope="module")
def choices(model):
    return make_choices(model, (X[:1],), weight=(2, 3, 8), input=(8,), accumulator=(None,))


def test_harm_is_the_product_and_its_pairs_are_weighted_alike(model, choices) -> None:
    own = score(model, BATCHES, choices, "measured")
    found = score(model, BATCHES, choices, "lrp_measured:pairs=true")
    case = make_case(model, BATCHES, choices)
    relevance = relevances(case, Trials())
    mean = sum(relevance.values()) / len(relevance)
    for name, harm in own.harm.items():
        assert np.allclose(found.harm[name], relevance[name] / mean * harm)
    assert len({round(value / mean, 6) for value in relevance.values()}) > 1
    worst = {n: int(harm.argmax()) for n, harm in own.harm.items()}
    losses = pair_losses(case, Trials(), {n: choices.layers[n][i] for n, i in worst.items()})
    assert set(found.pairs) == set(combinations(own.harm, 2))
    for (i, j), table in found.pairs.items():
        weight = np.sqrt(relevance[i] * relevance[j]) / mean
        wanted = weight * interaction(losses, (i, j))
        assert table[worst[i], worst[j]] == pytest.approx(wanted, rel=1e-6, abs=1e-12)
    assert not score(model, BATCHES, choices, "lrp_measured").pairs


def test_interactions_are_measured_at_the_bits_that_are_asked_for(model, choices) -> None:
    case = make_case(model, BATCHES, choices)
    at = {n: next(k for k, c in enumerate(o) if c.weight == 3) for n, o in choices.layers.items()}
    losses = pair_losses(case, Trials(), {n: choices.layers[n][k] for n, k in at.items()})
    found = Augmented(bits=3)(case, Trials())
    usual = Augmented()(case, Trials())
    for (i, j), table in found.pairs.items():
        assert table[at[i], at[j]] == pytest.approx(interaction(losses, (i, j)), abs=1e-12)
    assert any(not np.allclose(found.pairs[p], usual.pairs[p]) for p in found.pairs)
