"""Similarity of layers by canonical correlations."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.methods.sensitivity.cmpq import leading, similarity


def test_similarity_is_one_under_any_invertible_map() -> None:
    random = np.random.default_rng(0)
    y = random.normal(size=(200, 6))
    mapped = y @ (random.normal(size=(6, 6)) + 3 * np.eye(6)) + 5
    assert similarity(leading(y, 1.0), leading(mapped, 1.0)) == pytest.approx(1, abs=1e-9)
    unrelated = random.normal(size=(200, 6))
    assert similarity(leading(y, 1.0), leading(unrelated, 1.0)) < 0.4
