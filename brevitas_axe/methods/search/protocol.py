"""Which configuration is best: searchers over a finite space, and the bookkeeping they share.

A searcher is given names, values and numbers, no model. To write your own: a frozen
dataclass with `facts` and `repeats` in a new file, and an object of the file's name that is an
instance of it. Let it evaluate through `Questions`, which keeps the promises that
tests/contracts/test_search.py checks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from random import Random
from typing import Any, Protocol

from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import Facts

Configuration = Mapping[str, Any]
# Configurations with their values, in the order in which they were evaluated.
Asked = Sequence[tuple[Configuration, float]]
# For every decision, the position of its value in `Space.decisions`.
Positions = tuple[int, ...]
# A space of so many configurations or fewer may be listed.
_LISTED = 2**16


@dataclass(frozen=True)
class Record:
    """A result of another case, such as another model; not of the space that is searched.

    Attributes:
        features: numbers that describe the case, as `Space.features`.
        configuration: what was decided there. Decisions and values that the space lacks are no
            error: nothing is learned from them.
        value: how good that was, larger is better, on the scale of the objective.
    """

    features: Mapping[str, float]
    configuration: Configuration
    value: float


@dataclass(frozen=True)
class Space:
    """All configurations: every decision takes one of its values.

    Attributes:
        decisions: name → the values, which must be distinct.
        features: numbers that describe what is configured (such as a model), by which a searcher
            may tell which earlier results come from similar cases.
        others: results of other cases, from which a searcher may learn where to begin; none of
            them counts as found.

    Raises:
        InvalidOption: there is no decision, or one without values or with a value twice.
    """

    decisions: Mapping[str, tuple[Any, ...]]
    features: Mapping[str, float] = field(default_factory=dict)
    others: Sequence[Record] = ()

    def __post_init__(self) -> None:
        if not self.decisions:
            raise InvalidOption("there is nothing to search: give at least one decision.")
        for name, values in self.decisions.items():
            if not values:
                raise InvalidOption(f"decision '{name}' has no value to choose from; give one.")
            if any(value in values[:i] for i, value in enumerate(values)):
                raise InvalidOption(f"decision '{name}' offers a value twice; give it once.")

    @property
    def size(self) -> int:
        """How many configurations there are."""
        return prod(map(len, self.decisions.values()))

    def positions(self, configuration: Configuration) -> Positions:
        """Where the values of a configuration stand.

        Raises:
            InvalidOption: it is none of this space.
        """
        if set(configuration) != set(self.decisions):
            raise InvalidOption(
                f"a configuration decides {', '.join(self.decisions)}, but one was given for "
                f"{', '.join(configuration) or 'nothing'}."
            )
        for name, value in configuration.items():
            if value not in self.decisions[name]:
                raise InvalidOption(f"decision '{name}' cannot be {value!r}; it is not offered.")
        return tuple(values.index(configuration[name]) for name, values in self.decisions.items())

    def at(self, positions: Positions) -> dict[str, Any]:
        """The configuration of these positions."""
        pairs = zip(self.decisions.items(), positions, strict=True)
        return {name: values[position] for (name, values), position in pairs}

    def numbered(self, number: int) -> Positions:
        """The configuration of a number below `size`; the last decision changes fastest."""
        found: list[int] = []
        for values in reversed(list(self.decisions.values())):
            number, position = divmod(number, len(values))
            found.append(position)
        return tuple(reversed(found))


class Objective(Protocol):
    """How good a configuration is; larger is better."""

    def __call__(self, configuration: Configuration) -> float: ...


class Searcher(Protocol):
    """Finds a good configuration by asking the objective.

    Attributes:
        facts: for the catalogue.
        repeats: it asks for a configuration again, for objectives that change while they are asked,
            such as the loss of weights in training: see `RepeatingSearcher`.

    Args:
        space: what can be chosen.
        objective: evaluated at most `budget` times; NaN counts as worse than every number.
        budget: number of evaluations.
        before: configurations with known values, which are not asked again and count as found.
        seed: of all randomness; the same seed gives the same questions and the same answer.

    Returns:
        The best configuration of `before` and all questions, of equal ones the first.

    Raises:
        InvalidOption: a negative budget, neither budget nor `before`, or a configuration in
            `before` that is not of the space.
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def repeats(self) -> bool: ...

    def __call__(
        self,
        space: Space,
        objective: Objective,
        budget: int,
        *,
        before: Asked = (),
        seed: int = 0,
    ) -> Configuration: ...


class RepeatingSearcher(Searcher, Protocol):
    """A searcher with `repeats`, for an objective that changes while it is asked.

    It makes `budget` evaluations whatever their values are, which must be finite. What it returns
    is what it has learned to prefer, which it need not have asked. `before` are the first steps of
    the same search: it continues behind them as if it had never stopped.
    """

    def course(
        self, space: Space, asked: Asked, *, seed: int = 0
    ) -> Iterator[Mapping[str, tuple[float, ...]]]:
        """How likely each value of every decision was, in front of each step of a whole search."""
        ...


def check_questions(budget: int, before: Asked) -> None:
    """Raises InvalidOption where a search could evaluate nothing and knows nothing."""
    if budget < 0 or (budget == 0 and not before):
        raise InvalidOption(f"a search needs a budget of at least one question, not {budget}.")


class Questions:
    """What a search has evaluated, and may still evaluate; nothing is evaluated twice.

    Attributes:
        known: positions of a configuration → its value, in the order in which they were found.
        left: questions that may still be asked, never more than there are configurations.
    """

    def __init__(
        self,
        space: Space,
        objective: Objective,
        budget: int,
        before: Asked,
    ) -> None:
        check_questions(budget, before)
        self.space, self._objective = space, objective
        self.known: dict[Positions, float] = {}
        for configuration, value in before:
            self.known.setdefault(space.positions(configuration), float(value))
        self.left = min(budget, space.size - len(self.known))

    def ask(self, positions: Positions) -> float:
        """The value of a configuration; the objective is asked where it is not known."""
        if positions not in self.known:
            assert self.left > 0, "the budget is spent"
            self.left -= 1
            self.known[positions] = float(self._objective(self.space.at(positions)))
        return self.known[positions]

    def unknown(self, generator: Random) -> Iterator[Positions]:
        """Configurations that are not known, in random order."""
        size = self.space.size
        if size <= _LISTED:
            order = list(range(size))
            generator.shuffle(order)
            yield from (p for p in map(self.space.numbered, order) if p not in self.known)
            return
        while len(self.known) < size:
            positions = self.space.numbered(generator.randrange(size))
            if positions not in self.known:
                yield positions

    def ranked(self) -> list[Positions]:
        """What is known, the best first; of equal ones the one that was found first."""
        # NaN is the only value that is unequal to itself.
        return sorted(
            self.known,
            key=lambda p: self.known[p] if self.known[p] == self.known[p] else -float("inf"),
            reverse=True,
        )

    def best(self) -> dict[str, Any]:
        """The best configuration that is known, of equal ones the first."""
        return self.space.at(self.ranked()[0])
