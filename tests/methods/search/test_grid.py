from __future__ import annotations

from brevitas_axe.methods.search.grid import grid
from brevitas_axe.methods.search.protocol import Space

SPACE = Space({"a": (0, 1, 2), "b": (0, 1, 2, 3)})


def questions(budget: int, before=()) -> list[int]:
    """Places of the questions in the list of all configurations."""
    asked: list[int] = []
    grid(SPACE, lambda c: asked.append(4 * c["a"] + c["b"]) or 0.0, budget, before=before)
    return asked


def test_the_whole_grid_is_asked_in_order() -> None:
    assert questions(12) == list(range(12))


def test_a_small_budget_is_spread_evenly() -> None:
    assert questions(3) == [2, 6, 10]
    assert questions(1) == [6]


def test_what_is_known_gives_way_to_the_next() -> None:
    assert questions(3, [({"a": 1, "b": 2}, 0.0)]) == [2, 7, 10]
