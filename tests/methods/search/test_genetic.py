from __future__ import annotations

import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.genetic import Genetic, genetic
from brevitas_axe.methods.search.protocol import Space
from brevitas_axe.methods.search.random import random

SPACE = Space({f"layer{i}": tuple(range(6)) for i in range(6)})


def objective(configuration) -> float:
    return -float(sum((value - 3) ** 2 for value in configuration.values()))


def test_it_learns_from_results() -> None:
    """46,656 configurations, 80 questions: nearer to the optimum than chance."""
    ours = [objective(genetic(SPACE, objective, 80, seed=seed)) for seed in range(8)]
    chance = [objective(random(SPACE, objective, 80, seed=seed)) for seed in range(8)]
    assert sum(ours) > 0.7 * sum(chance)


def test_children_have_their_parents_values() -> None:
    """Without mutation, every decision of a child is that of one of the best known ones."""
    searcher = Genetic(population=2, mutation=0.0)
    parents = [dict.fromkeys(SPACE.decisions, 3), dict.fromkeys(SPACE.decisions, 4)]
    before = [(parent, 1.0) for parent in parents]
    before += [(dict.fromkeys(SPACE.decisions, value), 0.0) for value in (0, 5)]
    asked: list[dict] = []
    searcher(SPACE, lambda c: asked.append(dict(c)) or -1.0, 10, before=before)
    assert len(asked) == 10
    assert all(set(child.values()) == {3, 4} for child in asked)


def test_where_no_child_is_new_chance_goes_on() -> None:
    searcher = Genetic(population=2, mutation=0.0)
    same = dict.fromkeys(SPACE.decisions, 0)
    near = {**same, "layer0": 1}
    asked: list[dict] = []
    searcher(SPACE, lambda c: asked.append(c) or -1.0, 1, before=[(same, 1.0), (near, 1.0)])
    assert asked[0] not in (same, near)


@pytest.mark.parametrize("options", [{"population": 1}, {"rivals": 0}, {"mutation": 1.5}], ids=str)
def test_bad_options_are_refused(options) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        Genetic(**options)
