"""The solvers by name: one per file, named after the file.

To write your own: build a `Recursion` (sequential.py) in a new file, give it a `solve` with the
signature of `Solver`, and add it to `SOLVERS`; tests/ptq runs over every one of them.
"""

from __future__ import annotations

from typing import Protocol

from brevitas_axe.ptq import gpfq, gptq, qronos
from brevitas_axe.ptq.problem import LayerProblem, LayerSolution


class Solver(Protocol):
    """A pure function from a layer to its integers.

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

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: str = "fast"
    ) -> LayerSolution: ...


SOLVERS: dict[str, Solver] = {
    module.__name__.rpartition(".")[2]: module.solve for module in (gpfq, gptq, qronos)
}
