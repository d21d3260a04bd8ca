"""What an allocator is given, and what it gives: one choice for every layer.

To write your own: define, in a new file of this room, a frozen dataclass with the attributes and
the signature of `Allocator`, and an instance of it that bears the file's name; its options are the
fields of the dataclass. The problem (problem.py) is numbers only. tests/contracts/test_allocate.py
runs over every registered allocator.
"""

from __future__ import annotations

from typing import Protocol

from brevitas_axe.methods.allocate.problem import Assignment, Problem
from brevitas_axe.registry import Facts


class Allocator(Protocol):
    """Picks a choice for every layer.

    Attributes:
        exact: no assignment that fits has less harm than the one returned.
        monotone: with a larger budget the harm is never larger. Allocators that have other aims
            besides the harm, such as a measured loss or no group being worse off, promise that
            only for problems without a measure and without parts.
        takes_target: it uses `Problem.target`; problems of other allocators must have none.
        several_metrics: it looks at `Problem.metrics`, so that more than one metric counts.
        needs_groups: it divides budgets between the groups of layers in `Problem.parts`; without
            groups it would be a plain integer program.
        facts: for the catalogue.

    Args:
        problem: numbers; not modified.

    Returns:
        Index of every layer's choice. All budgets are met, and layers that read one activation
        agree on its bits.

    Raises:
        InvalidOption: nothing that fits was found.
    """

    @property
    def exact(self) -> bool: ...

    @property
    def monotone(self) -> bool: ...

    @property
    def takes_target(self) -> bool: ...

    @property
    def several_metrics(self) -> bool: ...

    @property
    def needs_groups(self) -> bool: ...

    @property
    def facts(self) -> Facts: ...

    def __call__(self, problem: Problem) -> Assignment: ...
