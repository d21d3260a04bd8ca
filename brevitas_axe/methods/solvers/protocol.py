"""What a solver is given, and what it gives: the integers of one layer.

To write your own: in a new file, define a frozen dataclass with the attributes and the signature of
`Solver`, and an instance of it that bears the file's name; its options are the fields of the
dataclass. One that decides column after column builds a `Recursion` (sequential.py) and has
`finish` (levels.py) run it. tests/contracts/test_solvers.py runs over every registered solver.
"""

from __future__ import annotations

from typing import Literal, Protocol

from brevitas_axe.methods.solvers.problem import LayerProblem, LayerSolution, Quality
from brevitas_axe.methods.solvers.rounding import Schedule, Variable
from brevitas_axe.registry import Facts, methods


class Solver(Protocol):
    """A pure function from a layer to its integers.

    Attributes:
        uses_float_inputs: at quality "fast" it looks at `problem.cross`, the products with the
            float inputs; "best" always does.
        facts: for the catalogue.
        rounds_floats: it takes problems with `significant` bits too; left out, it does not, and
            layers in floating-point formats are given to another solver (`for_floats`).

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


def for_floats(solver: Solver) -> Solver:
    """The solver, if it rounds to floating-point formats, else the first of the room that does."""
    others = sorted(methods("solvers").items())
    able = (s for s in (solver, *(s for _, s in others)) if getattr(s, "rounds_floats", False))
    return next(able)


class WideSolver(Solver, Protocol):
    """A solver whose solutions of layers are a start, from which whole blocks learn.

    Attributes:
        scope: "block", "model", or "layer" for a solver like all others.
        schedule: of the optimizer.
        variable: what is learned.
        loss: of a block's outputs.
        drop: share of what enters a block that is taken from the float model, at each step.
        seed: of what is dropped.
    """

    @property
    def scope(self) -> Literal["layer", "block", "model"]: ...

    @property
    def schedule(self) -> Schedule: ...

    @property
    def variable(self) -> Variable: ...

    @property
    def loss(self) -> Literal["mse", "fisher", "kl"]: ...

    @property
    def drop(self) -> float: ...

    @property
    def seed(self) -> int: ...


def wide(solver: Solver) -> WideSolver | None:
    """The solver, if it has a scope wider than a layer."""
    scope = getattr(solver, "scope", "layer")
    return None if scope == "layer" else solver  # type: ignore[return-value]
