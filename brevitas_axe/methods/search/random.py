"""Random search (Bergstra and Bengio, JMLR 13, 2012), without asking anything twice."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random as Generator
from typing import Any

from brevitas_axe.methods.search.protocol import Asked, Objective, Questions, Space
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Random:
    """Configurations drawn evenly from those that are not known: the baseline of all others."""

    repeats = False
    facts = Facts(
        kind="–",
        granularity="configuration",
        signal="none",
        export="–",
        source="JMLR 13 (2012) 281–305",
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
        unknown = questions.unknown(Generator(seed))
        while questions.left:
            questions.ask(next(unknown))
        return questions.best()


random = Random()
