"""Tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011), by Optuna."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import (
    Asked,
    Objective,
    Positions,
    Questions,
    Space,
)
from brevitas_axe.registry import Facts

# Proposals in a row that are known already, after which an unknown one is drawn at random.
_PATIENCE = 16


@dataclass(frozen=True)
class Tpe:
    """Asks next where good results are more likely than bad ones, decision by decision.

    Attributes:
        startup: results, those of `before` included, up to which configurations are random.

    Raises:
        InvalidOption: startup is negative.
    """

    startup: int = 10
    repeats = False
    facts = Facts(
        kind="–",
        granularity="configuration",
        signal="results so far",
        export="–",
        source="NeurIPS 2011; optuna",
    )

    def __post_init__(self) -> None:
        if self.startup < 0:
            raise InvalidOption(f"startup counts results, so it cannot be {self.startup}.")

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
        unknown = questions.unknown(Random(seed))
        distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(range(len(values)))
            for name, values in space.decisions.items()
        }
        with _quiet():
            sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.startup)
            study = optuna.create_study(sampler=sampler, direction="maximize")

            def tell(positions: Positions, value: float) -> None:
                parameters = dict(zip(distributions, positions, strict=True))
                if value != value:  # NaN, which Optuna refuses
                    value = -float("inf")
                study.add_trial(
                    optuna.create_trial(params=parameters, distributions=distributions, value=value)
                )

            for positions, value in questions.known.items():
                tell(positions, value)
            while questions.left:
                positions = self._proposal(study, distributions, questions)
                if positions is None:
                    positions = next(p for p in unknown if p not in questions.known)
                tell(positions, questions.ask(positions))
        return questions.best()

    def _proposal(
        self, study: optuna.Study, distributions: dict[str, Any], questions: Questions
    ) -> Positions | None:
        """What Optuna proposes; None after _PATIENCE proposals that are known already."""
        for _ in range(_PATIENCE):
            trial = study.ask(distributions)
            # The proposal is not told here: `tell` adds it as a finished trial, with its value.
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            positions = tuple(int(trial.params[name]) for name in distributions)
            if positions not in questions.known:
                return positions
        return None


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna's log without its line for every trial."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)


tpe = Tpe()
