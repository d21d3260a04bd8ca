"""The solvers by name: one per file, named after the file, and those of other packages.

To write your own: build a `Recursion` (sequential.py) in a new file and define an object that bears
the file's name and is a `Solver`; tests/contracts runs over every one of them. Another package
registers its solver under the entry-point group `brevitas_axe.solvers`.
"""

from __future__ import annotations

from typing import Protocol

from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.registry import Facts, method, methods


class Solver(Protocol):
    """A pure function from a layer to its integers.

    Attributes:
        uses_float_inputs: at quality "fast" it looks at `problem.cross`, the products with the
            float inputs; "best" always does.
        facts: for the catalogue.

    Args:
        problem: the layer; not modified.
        act_order: columns are decided by descending second moment of their input.
        quality: "fast" is the published algorithm; "best" searches scale, threshold, target and
            single integers under the same budget, and never returns a row with a larger loss.

    Returns:
        Integers whose worst-case sums fit the accumulator, tile by tile.

    Raises:
        NonFiniteValues: the layer's statistics cannot be used.
        InvalidOption: an unknown quality.
    """

    @property
    def uses_float_inputs(self) -> bool: ...

    @property
    def facts(self) -> Facts: ...

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution: ...


def solvers() -> dict[str, Solver]:
    """All solvers by name: this room's files, and entry points of `brevitas_axe.solvers`."""
    return methods("solvers")


def solver(name: str) -> Solver:
    """One solver by name; InvalidOption lists the names if there is none."""
    return method("solvers", name)
