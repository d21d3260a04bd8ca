"""Quantune (arXiv 2202.05048): boosted trees predict each configuration; the best is asked next."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import (
    Asked,
    Objective,
    Positions,
    Questions,
    Space,
)
from brevitas_axe.registry import Facts, check_ranges

# Standard deviation to which values are scaled, so that gamma means the same for every objective:
# that of the accuracies (%) in the tables of six nets for which the paper chose it.
_SPREAD = 24.0


@dataclass(frozen=True)
class Surrogate:
    """A regression of what is known, on the configuration one-hot and the features of the case.

    Results of other cases (`Space.others`) are learned from the first question on; without any,
    the first question is random. Predictions that are equal are asked in random order.

    Attributes:
        rounds: trees.
        rate: by which each counts (eta).
        gamma: least gain of a division of a tree.
        candidates: unknown configurations among which the best prediction is asked; in a larger
            space, half of them are drawn at random and half differ from the best known ones in
            one decision.

    Raises:
        InvalidOption: a number is outside its range, or xgboost is not installed.
    """

    rounds: int = 200
    rate: float = 0.15
    gamma: float = 3.0
    candidates: int = 4096

    repeats = False
    facts = Facts(
        kind="–",
        granularity="configuration",
        signal="results so far, of other models too",
        export="–",
        source="arXiv 2202.05048",
    )

    def __post_init__(self) -> None:
        check_ranges(
            self,
            rounds=(1, math.inf),
            rate=(0, 1),
            gamma=(0, math.inf),
            candidates=(2, math.inf),
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
        trees = _xgboost()
        generator = Random(seed)
        columns = _Columns(space)
        learned = columns.others()
        while questions.left:
            offered = self._offered(questions, generator)
            rows = np.vstack([learned, columns.own(questions.known)])
            values = _scaled([*(r.value for r in space.others), *questions.known.values()])
            if len(offered) > 1 and len(rows) > 1:
                predicted = self._predicted(trees, rows, values, columns.own(offered), seed)
                offered = [offered[int(predicted.argmax())]]
            questions.ask(offered[0])
        return questions.best()

    def _offered(self, questions: Questions, generator: Random) -> list[Positions]:
        """Unknown configurations in random order."""
        space = questions.space
        if space.size - len(questions.known) <= self.candidates:
            found = [p for p in map(space.numbered, range(space.size)) if p not in questions.known]
            generator.shuffle(found)
            return found
        near = [p for best in questions.ranked() for p in _neighbours(space, best)]
        offered = dict.fromkeys(p for p in near if p not in questions.known)
        offered = dict.fromkeys(list(offered)[: self.candidates // 2])
        for positions in questions.unknown(generator):
            if len(offered) >= self.candidates:
                break
            offered[positions] = None
        found = list(offered)
        generator.shuffle(found)
        return found

    def _predicted(
        self, trees: Any, rows: np.ndarray, values: np.ndarray, table: np.ndarray, seed: int
    ) -> np.ndarray:
        """What the trees expect of each row of a table, after they learned rows and values."""
        settings = {
            "objective": "reg:squarederror",
            "eta": self.rate,
            "gamma": self.gamma,
            "seed": seed % 2**31,
            "nthread": 1,
            "verbosity": 0,
        }
        model = trees.train(settings, trees.DMatrix(rows, label=values), self.rounds)
        return model.predict(trees.DMatrix(table))


class _Columns:
    """Configurations and features as rows of numbers.

    1 where a value is chosen and 0 elsewhere; NaN where a feature is not known.

    Args:
        space: gives a column to each value of each decision, and to each feature.
    """

    def __init__(self, space: Space) -> None:
        self._space = space
        named = dict.fromkeys(name for r in space.others for name in r.features)
        self._features = [*dict.fromkeys((*space.features, *named))]
        counts = [len(values) for values in space.decisions.values()]
        self._starts = np.cumsum([0, *counts[:-1]])
        self._width = sum(counts)

    def own(self, configurations: Iterable[Positions]) -> np.ndarray:
        """Rows of configurations of the space."""
        places = np.array([*configurations], int).reshape(-1, len(self._starts)) + self._starts
        chosen = np.zeros((len(places), self._width))
        np.put_along_axis(chosen, places, 1.0, axis=1)
        features = np.tile(self._described(self._space.features), (len(places), 1))
        return np.hstack([chosen, features])

    def others(self) -> np.ndarray:
        """Rows of the results of other cases."""
        rows = [
            [
                *(
                    float(name in record.configuration and record.configuration[name] == value)
                    for name, values in self._space.decisions.items()
                    for value in values
                ),
                *self._described(record.features),
            ]
            for record in self._space.others
        ]
        return np.array(rows).reshape(-1, self._width + len(self._features))

    def _described(self, features: Mapping[str, float]) -> list[float]:
        return [features.get(name, math.nan) for name in self._features]


def _neighbours(space: Space, positions: Positions) -> Iterable[Positions]:
    """Configurations that differ in one decision."""
    for i, values in enumerate(space.decisions.values()):
        for j in range(len(values)):
            if j != positions[i]:
                yield (*positions[:i], j, *positions[i + 1 :])


def _scaled(values: Sequence[float]) -> np.ndarray:
    """Values of mean 0 and a known spread; what is no finite number becomes the worst that is."""
    found = np.array(values, float)
    finite = np.isfinite(found)
    if not finite.any():
        return np.zeros(len(found))
    found = np.where(finite, found, found[finite].min())
    spread = found.std()
    return (found - found.mean()) * (_SPREAD / spread if spread > 0 else 1.0)


def _xgboost() -> Any:
    try:
        return importlib.import_module("xgboost")
    except ImportError:
        raise InvalidOption(
            "the searcher 'surrogate' needs xgboost: pip install 'brevitas_axe[tune]'."
        ) from None


surrogate = Surrogate()
