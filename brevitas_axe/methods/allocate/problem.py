"""What an allocator is given: numbers only, no model.

A quantity of a whole assignment (its harm, or one of its costs) is a sum over layers and over
pairs of layers. Budgets bound costs; ties make layers that read the same activation agree on their
input bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.formats import Format, bits_of
from brevitas_axe.plan import Choices, LayerPrecision, Plan

# Index of the choice that each layer takes.
Assignment = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Quantity:
    """A number for every assignment.

    Attributes:
        single: per layer, float64 [choices].
        pairs: (i, j) with i < j → float64 [choices of i, choices of j], added where both layers
            take these choices.

    Raises:
        NonFiniteValues: a number is NaN or infinite.
    """

    single: tuple[np.ndarray, ...]
    pairs: Mapping[tuple[int, int], np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(np.isfinite(a).all() for a in (*self.single, *self.pairs.values())):
            raise NonFiniteValues("a score or cost is NaN or infinite; check what measured it.")

    def total(self, assignment: Assignment) -> float:
        """Value for a whole assignment."""
        singles = (values[c] for values, c in zip(self.single, assignment, strict=True))
        pairs = (m[assignment[i], assignment[j]] for (i, j), m in self.pairs.items())
        return math.fsum((*singles, *pairs))

    def change(self, assignment: Assignment, moves: Mapping[int, int]) -> float:
        """Total after some layers (index → new choice) have moved, minus the total before."""
        terms = [self.single[i][c] - self.single[i][assignment[i]] for i, c in moves.items()]
        for pair in {pair for i in moves for pair in self._touching.get(i, ())}:
            old = tuple(assignment[i] for i in pair)
            new = tuple(moves.get(i, assignment[i]) for i in pair)
            terms.append(self.pairs[pair][new] - self.pairs[pair][old])
        return math.fsum(terms)

    def extreme(self, pick: Callable[[np.ndarray], float]) -> float:
        """Bound of the total: np.min or np.max of every term, added up."""
        return math.fsum(pick(values) for values in (*self.single, *self.pairs.values()))

    @cached_property
    def _touching(self) -> dict[int, list[tuple[int, int]]]:
        touching: dict[int, list[tuple[int, int]]] = {}
        for pair in self.pairs:
            for i in pair:
                touching.setdefault(i, []).append(pair)
        return touching


@dataclass(frozen=True, eq=False)
class Problem:
    """The task of an allocator in numbers: harm, costs and budgets of every choice.

    Attributes:
        choices: of every layer, and which layers share their input bits.
        harm: estimated rise of the loss, to be minimised.
        costs: budget name → cost.
        budgets: budget name → most that the cost may be.
        measure: measured rise of the loss for an assignment; None where no model is at hand.
        target: largest measured rise that is allowed; None for no such limit.
        parts: metric → layers whose harm it measures, where not all have the same (MixDQ).
        metrics: metric → harm of all layers by it, of the parts or to be tried besides.

    Raises:
        InvalidOption: no layer, a budget without a cost, or a limit that is not a number.
    """

    choices: Choices
    harm: Quantity
    costs: Mapping[str, Quantity]
    budgets: Mapping[str, float]
    measure: Callable[[Assignment], float] | None = None
    target: float | None = None
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: Mapping[str, Quantity] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.choices.layers:
            raise InvalidOption(
                "there is no layer to choose bits for; offer choices for at least one, and do not "
                "exclude them all."
            )
        if self.target is not None and math.isnan(self.target):
            raise InvalidOption("the target is not a number; give the largest rise of the loss.")
        for name, limit in self.budgets.items():
            if name not in self.costs:
                raise InvalidOption(
                    f"there is no cost for the budget '{name}', only: {', '.join(self.costs)}."
                )
            if math.isnan(limit):
                raise InvalidOption(f"the budget '{name}' is not a number.")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.choices.layers)

    @cached_property
    def options(self) -> tuple[tuple[LayerPrecision, ...], ...]:
        """Choices by layer index."""
        return tuple(self.choices.layers.values())

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Layer indices that share their input bits, and every other layer alone."""
        index = {name: i for i, name in enumerate(self.names)}
        groups = [tuple(index[name] for name in group) for group in self.choices.same_input]
        tied = {i for group in groups for i in group}
        return (*groups, *((i,) for i in index.values() if i not in tied))

    def plan(self, assignment: Assignment) -> Plan:
        """The assignment by layer name."""
        picked = zip(self.names, self.options, assignment, strict=True)
        return Plan({name: options[c] for name, options, c in picked})

    def is_tied(self, assignment: Assignment) -> bool:
        """True when layers that read the same activation agree on its bits."""
        bits = [options[c].input for options, c in zip(self.options, assignment, strict=True)]
        return all(len({bits[i] for i in unit}) == 1 for unit in self.units)

    def fits(self, assignment: Assignment) -> bool:
        """True when every budget is met and `is_tied`."""
        return self.is_tied(assignment) and all(
            self.costs[name].total(assignment) <= limit for name, limit in self.budgets.items()
        )

    def expense(self, assignment: Assignment) -> float:
        """All costs in one number: each as a share of its upper bound."""
        return math.fsum(q.total(assignment) / self._bounds[n] for n, q in self.costs.items())

    def expense_change(self, assignment: Assignment, moves: Mapping[int, int]) -> float:
        """Change of `expense` by moves (layer index → new choice)."""
        return math.fsum(
            q.change(assignment, moves) / self._bounds[n] for n, q in self.costs.items()
        )

    @cached_property
    def _bounds(self) -> dict[str, float]:
        return {name: quantity.extreme(np.max) or 1.0 for name, quantity in self.costs.items()}

    @cached_property
    def uniform(self) -> list[Assignment]:
        """Assignments that give all layers the same precision, in order of falling expense.

        A layer that may not get it takes its nearest choice: first in input bits, then in weight
        bits, accumulator and tile. Layers that share their input bits agree on them.
        """
        offered = dict.fromkeys(choice for options in self.options for choice in options)
        found = {self.nearest(choice) for choice in offered}
        return sorted(found, key=lambda a: (-self.expense(a), a))

    @cached_property
    def ladder(self) -> list[Assignment]:
        """The rungs: those of `uniform` that no cheaper one beats, so that harm grows downwards."""
        rungs: list[Assignment] = []
        for rung in reversed(self.uniform):
            if not rungs or self.harm.total(rung) < self.harm.total(rungs[-1]):
                rungs.append(rung)
        return rungs[::-1]

    def nearest(self, wanted: LayerPrecision) -> Assignment:
        """One precision for all layers, or what each may get that is nearest to it."""
        chosen = [0] * len(self.names)
        for unit in self.units:
            widths = self.input_widths(unit)
            bits = min(widths, key=lambda width: _distance(width, wanted.input))
            for i in unit:
                chosen[i] = self.closest(i, replace(wanted, input=bits))
        return tuple(chosen)

    def input_widths(self, unit: tuple[int, ...]) -> list[Format | None]:
        """Input bits that all layers of a unit may get, in the order of the first one's choices."""
        common = set.intersection(*({c.input for c in self.options[i]} for i in unit))
        return list(dict.fromkeys(c.input for c in self.options[unit[0]] if c.input in common))

    def closest(self, layer: int, wanted: LayerPrecision) -> int:
        """Of a layer's choices with the wanted input bits, which must exist, the nearest one."""
        options = self.options[layer]
        allowed = (k for k, c in enumerate(options) if c.input == wanted.input)
        return min(allowed, key=lambda k: _differences(options[k], wanted))

    def least_harm(self, assignments: Iterable[Assignment]) -> Assignment:
        """Of the assignments that fit, the first with the least harm.

        Every allocator that visits assignments in an order that does not depend on the budgets
        ends with this: then a larger budget never does worse.

        Raises:
            InvalidOption: none fits.
        """
        fitting = (a for a in assignments if self.fits(a))
        best = min(fitting, key=self.harm.total, default=None)
        if best is None:
            raise self.refusal()
        return best

    def refusal(self) -> InvalidOption:
        """The error to raise where no assignment was found."""
        wanted = ", ".join(f"{name} ≤ {limit:g}" for name, limit in self.budgets.items())
        least = ", ".join(f"{name} {self.costs[name].extreme(np.min):g}" for name in self.budgets)
        # Where one budget alone is too small, no other allocator finds what there is not.
        hopeless = any(self.costs[n].extreme(np.min) > limit for n, limit in self.budgets.items())
        way = "raise the budget, or offer cheaper choices"
        way += "" if hopeless else ", or try an allocator that is exact"
        return InvalidOption(
            f"no allocation with {wanted} was found; layer by layer the least possible is {least}: "
            f"{way}."
        )


def _differences(
    choice: LayerPrecision, wanted: LayerPrecision
) -> tuple[tuple[int, int, int], ...]:
    return tuple(
        _distance(getattr(choice, name), getattr(wanted, name))
        for name in ("weight", "accumulator", "tile")
    )


def _distance(width: Format | None, wanted: Format | None) -> tuple[int, int, int]:
    """Sort key: by bits, then the same kind of format, then the wider; None is farthest."""
    if width is None or wanted is None:
        return (0 if width == wanted else 2**31, 0, 0)
    bits = bits_of(width)
    return abs(bits - bits_of(wanted)), width != wanted, -bits
