"""Trials one after another: plain widths, the plans of automatic widths, then the searcher's."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median
from typing import Any

from tqdm.auto import tqdm

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import Configuration, Space
from brevitas_axe.registry import method
from brevitas_axe.run.tune.decisions import WIDTHS, told, written
from brevitas_axe.run.tune.goal import Goal, Trial
from brevitas_axe.run.tune.measure import Asked, Trials


class Loop:
    """Trials one after another, as long as there is time.

    Args:
        asked: of every trial.
        trials: those that were made, and how one is made.
        space: what is chosen from.
        goal: which trials are better; the reference of its cost is found here.
    """

    def __init__(
        self,
        asked: Asked,
        trials: Trials,
        space: Space,
        goal: Goal,
    ) -> None:
        self._asked, self._trials, self._space = asked, trials, space
        self.goal = goal
        self._known = {written(t.configuration): t for t in trials.done if not t.trained}
        self._best: Trial | None = None
        self.first: Trial | None = None
        self._limit = math.inf

    def search(self, training: bool) -> Trial:
        """The best trial.

        Args:
            training: will follow, for which half of the time is left.
        """
        tuning = self._asked.tuning
        self._limit = 60 * (tuning.minutes or math.inf) / (2 if training else 1)
        first = {name: values[0] for name, values in self._space.decisions.items()}
        if self._asked.budget:
            self._trials.plans(first)  # refuses a budget that nothing fits
        self._plain(first)
        openings = [{**first, WIDTHS: rank} for rank in self._space.decisions[WIDTHS]]
        try:
            for configuration in openings:
                self._score(configuration)
            before = [(t.configuration, self.goal.score(t)) for t in self._in_space()]
            left = self._space.size - len(before)
            searcher = method("search", tuning.searcher)
            if left:
                searcher(self._space, self._score, left, before=before, seed=tuning.seed)
        except _EndError:
            pass
        if self._best is None:
            refused = next((t.refused for t in self._known.values() if t.refused), "none fits")
            raise InvalidOption(
                f"none of {len(self._known)} trials is within the budget ({refused.rstrip('.')}); "
                "give more, or more minutes."
            )
        return self._best

    def _plain(self, first: dict[str, Any]) -> None:
        """Measures plain widths, whatever time there is; the goal's cost is a share of theirs.

        Raises:
            AxeError: the model can be solved by no widths.
        """
        self.first = trial = self._measured(first)
        if trial.refused is not None:
            self._trials.plans(first)  # fewer bits may do, or this says why not
        if self.goal.needed is not None and trial.refused is None:
            if self._asked.tuning.cost not in trial.costs:
                raise InvalidOption(
                    f"the cost '{self._asked.tuning.cost}' cannot be told of this model; choose "
                    "another for the allowed drop."
                )
            reference = trial.costs[self._asked.tuning.cost]
            self.goal = replace(self.goal, reference=reference)
            self._best = None
        for known in self._known.values():
            self._consider(known)

    def _score(self, configuration: Configuration) -> float:
        """The objective of the searcher.

        Raises:
            _EndError: there is no time for it, or there were trials enough.
        """
        if written(configuration) not in self._known:
            tuning = self._asked.tuning
            if len(self._known) >= (tuning.trials or math.inf):
                raise _EndError
            if self._trials.seconds + self._expected(configuration) > self._limit:
                raise _EndError
        return self.goal.score(self._measured(configuration))

    def _measured(self, configuration: Configuration) -> Trial:
        """A trial, made where it is not known."""
        key = written(configuration)
        if key in self._known:
            return self._known[key]
        trial, result = self._trials.measure(configuration)
        self._known[key] = trial
        before = self._best
        better = self._consider(trial)
        self._trials.keep(trial, result if better else None)
        if better and before is not None:
            self._trials.drop(before)
        self._say(trial)
        return trial

    def _consider(self, trial: Trial) -> bool:
        """Whether a trial is the best so far; of equals the first is."""
        score = self.goal.score(trial)
        if math.isnan(score):
            return False
        if self._best is None or score > self.goal.score(self._best):
            self._best = trial
            return True
        return False

    def _expected(self, configuration: Configuration) -> float:
        """Seconds that a trial will probably take."""
        known = [t for t in self._known.values() if t.refused is None]
        same = [t for t in known if t.configuration.get("quality") == configuration.get("quality")]
        return median(t.seconds for t in same or known) if known else 0.0

    def _in_space(self) -> list[Trial]:
        """What was measured, as far as it can be chosen now."""
        decisions = self._space.decisions
        return [
            trial
            for trial in self._known.values()
            if set(trial.configuration) == set(decisions)
            and all(value in decisions[name] for name, value in trial.configuration.items())
        ]

    def _say(self, trial: Trial) -> None:
        if not self._asked.run.progress:
            return
        found = trial.refused or f"{trial.value:.6g} with {trial.bits}"
        best = "" if self._best is None else f"; best {self._best.value:.6g}"
        spent = f"{self._trials.seconds / 60:.1f}"
        of = "" if math.isinf(self._limit) else f" of {self._limit / 60:.1f}"
        head = f"trial {len(self._known)} ({told(trial.configuration)})"
        tqdm.write(f"{head}: {found}{best}; {spent}{of} minutes")

    @property
    def trials(self) -> list[Trial]:
        """All that are known, in order."""
        return [*self._known.values()]


class _EndError(Exception):
    """Ends a searcher: the time is over."""
