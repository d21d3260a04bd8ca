from __future__ import annotations

from collections import Counter

from brevitas_axe.methods.search.protocol import Space
from brevitas_axe.methods.search.random import random

SPACE = Space({"a": tuple(range(4)), "b": tuple(range(5))})


def test_every_configuration_is_as_likely_as_another() -> None:
    def first_question(seed: int) -> tuple:
        asked: list[tuple] = []
        random(SPACE, lambda c: asked.append(tuple(c.values())) or 0.0, 1, seed=seed)
        return asked[0]

    counts = Counter(first_question(seed) for seed in range(2000))
    assert len(counts) == 20
    # 100 expected of each, standard deviation 9.7.
    assert 50 < min(counts.values()) <= max(counts.values()) < 150


def test_another_seed_asks_other_questions() -> None:
    orders = []
    for seed in (0, 1):
        asked: list[dict] = []
        random(SPACE, lambda c, a=asked: a.append(dict(c)) or 0.0, 10, seed=seed)
        orders.append(asked)
    assert orders[0] != orders[1]
