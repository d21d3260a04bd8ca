"""Grid search: all configurations in order, or as many as the budget allows, evenly spaced."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brevitas_axe.methods.search.protocol import Asked, Objective, Questions, Space
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class GridSearch:
    """Equal steps through the list of all configurations; the last decision changes fastest.

    The seed is not used. Configurations in `before` are skipped for the next one in the list.
    """

    repeats = False
    facts = Facts(
        kind="–", granularity="configuration", signal="none", export="–", source="textbook"
    )

    def __call__(
        self,
        space: Space,
        objective: Objective,
        budget: int,
        *,
        before: Asked = (),
        seed: int = 0,
    ) -> dict[str, Any]:
        questions = Questions(space, objective, budget, before)
        count, size = questions.left, space.size
        for index in range(count):
            number = (2 * index + 1) * size // (2 * count)  # the middle of each part
            while space.numbered(number) in questions.known:
                number = (number + 1) % size
            questions.ask(space.numbered(number))
        return questions.best()


grid = GridSearch()
