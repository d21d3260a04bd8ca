"""Similarity of layers by canonical correlations."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity.cmpq import leading, similarity
from brevitas_axe.registry import method


def test_similarity_is_one_under_any_invertible_map() -> None:
    random = np.random.default_rng(0)
    y = random.normal(size=(200, 6))
    mapped = y @ (random.normal(size=(6, 6)) + 3 * np.eye(6)) + 5
    assert similarity(leading(y, 1.0), leading(mapped, 1.0)) == pytest.approx(1, abs=1e-9)
    unrelated = random.normal(size=(200, 6))
    assert similarity(leading(y, 1.0), leading(unrelated, 1.0)) < 0.4


def test_one_correlation_is_the_published_one() -> None:
    """The largest canonical correlation, from covariances."""
    random = np.random.default_rng(1)
    x = random.normal(size=(300, 4))
    y = np.hstack([x[:, :2] + random.normal(size=(300, 2)), random.normal(size=(300, 3))])
    x, y = x - x.mean(0), y - y.mean(0)
    product = np.linalg.solve(x.T @ x, x.T @ y) @ np.linalg.solve(y.T @ y, y.T @ x)
    wanted = float(np.sqrt(np.linalg.eigvals(product).real.max()))
    bases = leading(x, 1.0), leading(y, 1.0)
    assert similarity(*bases, 1) == pytest.approx(wanted, abs=1e-9)
    assert similarity(*bases) < similarity(*bases, 2) < similarity(*bases, 1)


def test_options_are_read_and_checked() -> None:
    assert method("sensitivity", "cmpq:correlations=1").correlations == 1
    assert method("sensitivity", "cmpq").correlations is None
    with pytest.raises(InvalidOption, match="correlations of Cmpq"):
        method("sensitivity", "cmpq:correlations=0")
