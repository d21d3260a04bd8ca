"""Genetic search (Holland, 1975): the best configurations so far are crossed and mutated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any

from brevitas_axe.methods.search.protocol import (
    Asked,
    Objective,
    Positions,
    Questions,
    Space,
)
from brevitas_axe.registry import Facts, check_ranges

# Children in a row that are known already, after which an unknown one is drawn at random.
_PATIENCE = 16


@dataclass(frozen=True)
class Genetic:
    """Two parents, each the best of a few random ones; every decision is of one or the other.

    Attributes:
        population: results up to which configurations are random, those of `before` included; then
            the parents are among so many of the best.
        rivals: configurations of which the best becomes a parent.
        mutation: probability that a decision of a child is drawn anew.

    Raises:
        InvalidOption: a number is outside its range.
    """

    population: int = 8
    rivals: int = 2
    mutation: float = 0.15

    repeats = False
    facts = Facts(
        kind="–",
        granularity="configuration",
        signal="results so far",
        export="–",
        source="textbook",
    )

    def __post_init__(self) -> None:
        check_ranges(self, population=(2, math.inf), rivals=(1, math.inf), mutation=(0, 1))

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
        generator = Random(seed)
        unknown = questions.unknown(Random(generator.random()))
        while questions.left:
            child = None
            if len(questions.known) >= self.population:
                child = self._child(questions, generator)
            questions.ask(child or next(p for p in unknown if p not in questions.known))
        return questions.best()

    def _child(self, questions: Questions, generator: Random) -> Positions | None:
        """An unknown configuration; None after _PATIENCE that are known already."""
        counts = [len(values) for values in questions.space.decisions.values()]
        best = questions.ranked()[: self.population]
        for _ in range(_PATIENCE):
            # The smaller number is the better rank.
            ranks = [
                min(generator.randrange(len(best)) for _ in range(self.rivals)) for _ in range(2)
            ]
            genes = zip(best[ranks[0]], best[ranks[1]], counts, strict=True)
            child = tuple(
                generator.randrange(count)
                if generator.random() < self.mutation
                else generator.choice((mother, father))
                for mother, father, count in genes
            )
            if child not in questions.known:
                return child
        return None


genetic = Genetic()
