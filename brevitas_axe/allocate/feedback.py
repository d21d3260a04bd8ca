"""Integer programs whose harm is corrected by what whole plans lose when they are measured; ours.

A harm adds up what layers lose alone, by a local model. What they lose inside a plan can differ a
lot, and the exact optimum is where the model errs most in its own favour. So every layer of the
optimum is relieved in turn, its harm is scaled to the loss that this saves, and the program is
solved again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from brevitas_axe.allocate.ilp import ilp
from brevitas_axe.allocate.problem import Assignment, Problem, Quantity
from brevitas_axe.allocate.uniform import uniform
from brevitas_axe.errors import InvalidOption
from brevitas_axe.sensitivity.facts import Facts


@dataclass(frozen=True)
class Feedback:
    """The least measured loss among uniform precision and the programs' optima, corrected in turn.

    Without a measure this is the integer program.

    Attributes:
        rounds: corrections; each measures one plan per group of tied layers.
        most: largest factor by which one correction changes a harm.
    """

    rounds: int = 2
    most: float = 8.0
    exact = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="harm, corrected by measured losses",
        export="finn",
        source="ours",
    )

    def __call__(self, problem: Problem) -> Assignment:
        current = ilp(problem)
        if problem.measure is None:
            return current
        losses = {current: problem.measure(current)}
        try:
            flat = uniform(problem)
            losses[flat] = problem.measure(flat)
        except InvalidOption:
            pass  # mixed precision alone can fit
        factors = np.ones(len(problem.units))
        for _ in range(self.rounds):
            factors = factors * self._corrections(problem, current, losses[current], factors)
            current = ilp(replace(problem, harm=_scaled(problem, factors)))
            if current in losses:
                break
            losses[current] = problem.measure(current)
        return min(losses, key=losses.__getitem__)

    def _corrections(
        self, problem: Problem, current: Assignment, loss: float, factors: np.ndarray
    ) -> np.ndarray:
        """[units] measured saving over the expected one when a unit gets its least harm."""
        assert problem.measure is not None
        harm = _scaled(problem, factors)
        found = np.ones(len(problem.units))
        for u, unit in enumerate(problem.units):
            relieved = _relieved(problem, current, unit)
            expected = -harm.change(current, {i: relieved[i] for i in unit})
            if expected > 0:
                saved = loss - problem.measure(relieved)
                found[u] = np.clip(saved / expected, 1 / self.most, self.most)
        return found


def _relieved(problem: Problem, current: Assignment, unit: tuple[int, ...]) -> Assignment:
    """The assignment with the choices of least harm for one unit, all with the same input bits."""

    def best(bits: int | None) -> dict[int, int]:
        allowed = {
            i: [k for k, c in enumerate(problem.options[i]) if c.input == bits] for i in unit
        }
        return {i: min(ks, key=lambda k: problem.harm.single[i][k]) for i, ks in allowed.items()}

    offers = [best(bits) for bits in problem.input_widths(unit)]
    chosen = min(offers, key=lambda offer: sum(problem.harm.single[i][k] for i, k in offer.items()))
    return tuple(chosen.get(i, c) for i, c in enumerate(current))


def _scaled(problem: Problem, factors: np.ndarray) -> Quantity:
    """Harm with every unit's own part times its factor."""
    factor = {i: factors[u] for u, unit in enumerate(problem.units) for i in unit}
    single = tuple(values * factor[i] for i, values in enumerate(problem.harm.single))
    return Quantity(single, problem.harm.pairs)


feedback = Feedback()
