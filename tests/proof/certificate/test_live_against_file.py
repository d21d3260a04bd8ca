"""A live model and its file get the same certificate, on random models of one layer."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.live_against_file import KINDS, disagreements


@pytest.mark.parametrize("kind", KINDS)
def test_both_say_the_same(kind, tmp_path) -> None:
    for index in range(3):
        assert disagreements(np.random.default_rng([11, index]), kind, tmp_path) == []
