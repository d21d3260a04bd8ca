"""What a scorer is given, and what it gives: the harm of every choice of every layer.

To write your own: define, in a new file of this room, a frozen dataclass with `facts` and the
signature of `Scorer`, and an instance of it that bears the file's name; its options are the fields
of the dataclass. A scorer that does not look at the inputs of layers sets `needs_inputs = False`,
and then scores layers that no batch runs through as well, such as experts without tokens.

`Case` (case.py) holds model, data and choices, `Trials` (trials.py) runs pieces of work in parallel
and keeps their results. tests/contracts/test_sensitivity.py runs over every registered scorer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.registry import Facts


class Scorer(Protocol):
    """Scores every choice of every layer; the case is not modified.

    Attributes:
        facts: for the catalogue.

    Args:
        case: model, data, choices and metric.
        trials: runs independent pieces of work, in parallel and from the cache.
    """

    @property
    def facts(self) -> Facts: ...

    def __call__(self, case: Case, trials: Trials) -> Scores: ...


@runtime_checkable
class GroupingScorer(Scorer, Protocol):
    """A scorer that divides layers into groups and scores each by a metric of its own."""

    def groups(self, layers: Iterable[str]) -> Mapping[str, tuple[str, ...]]:
        """Metric → layers whose harm it measures; becomes `parts` of the scores.

        Raises:
            InvalidOption: the options ask for groups that these layers do not have.
        """
        ...
