"""Ranges of all quantizers together, by the loss of the whole model.

LAPQ (Nahshan et al., arXiv 1911.07190), section 4: for several p, every quantizer gets the range
with the least mean |Q(x) - x|^p; the model's loss as a function of p is fitted by a parabola, whose
vertex gives the start; from there Powell's method lowers the model's loss over all ranges jointly.

The loss here is the mean squared error of the model's output, for calibration has no labels; the
paper's is the cross-entropy. Unlike the authors' code, the vertex counts only where it is a minimum
between the smallest and the largest p, every step starts from the best ranges that were evaluated
so far, and the whole range is among them: no step raises the loss.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize, minimize_scalar

from brevitas_axe.methods.ranges.protocol import RangeCase
from brevitas_axe.registry import Facts, check_ranges

Shares = Mapping[str, float]


@dataclass(frozen=True)
class Lapq:
    """Least error in p-norms, the vertex over p, then Powell's method over all ranges.

    Attributes:
        weights: whether the ranges of weights are fitted as well, as published.
        least_p, most_p, norms: so many norms, evenly spaced.
        grid: ranges that are tried for each quantizer and norm, before the best one is refined.
        iterations: of Powell's method; 0 leaves it out.
        evaluations: losses of the model that Powell's method may ask for, at most.

    Raises:
        InvalidOption: an option outside its range, or no norm.
    """

    weights: bool = True
    least_p: float = 2.0
    most_p: float = 4.0
    norms: int = 10
    grid: int = 200
    iterations: int = 1
    evaluations: int = 2000
    facts = Facts(
        kind="–",
        granularity="model",
        signal="loss of the model",
        export="finn",
        source="arXiv 1911.07190",
    )

    def __post_init__(self) -> None:
        many = float("inf")
        check_ranges(self, norms=(1, many), grid=(2, many), iterations=(0, many))
        check_ranges(self, evaluations=(1, many), least_p=(0.1, self.most_p), most_p=(0.1, many))

    def __call__(self, case: RangeCase) -> dict[str, float]:
        return dict(self.stages(case)["powell"][0])

    def stages(self, case: RangeCase) -> dict[str, tuple[Shares, float]]:
        """The best ranges after every step, and the loss of the model with them.

        Returns:
            "max", "norms", "vertex" and "powell" → (shares, loss); losses never rise.
        """
        best = _Best(case)
        found = {"max": best.offer(dict.fromkeys(case.samples, 1.0))}
        if not case.samples:
            return dict.fromkeys(("max", "norms", "vertex", "powell"), found["max"])
        powers = np.linspace(self.least_p, self.most_p, self.norms).tolist()
        each = self.least_errors(case, powers)
        losses = [best.loss(shares) for shares in each]
        found["norms"] = best.kept
        between = vertex(powers, losses)
        if between is not None:
            best.offer(self.least_errors(case, [between])[0])
        found["vertex"] = best.kept
        if self.iterations:
            self._powell(best, list(case.samples), 1 / self.grid)
        found["powell"] = best.kept
        return found

    def least_errors(self, case: RangeCase, powers: Sequence[float]) -> list[dict[str, float]]:
        """For every p, the share of each quantizer with the least mean |Q(x) - x|^p."""
        shares = [step / self.grid for step in range(1, self.grid + 1)]
        found: list[dict[str, float]] = [{} for _ in powers]
        for name in case.samples:
            errors = [_norms(case, name, share, powers) for share in shares]
            for index, power in enumerate(powers):
                column = [each[index] for each in errors]
                place = min(range(self.grid), key=lambda i, column=column: (column[i], -i))
                found[index][name] = self._refined(case, name, power, shares[place], column[place])
        return found

    def _refined(
        self, case: RangeCase, name: str, power: float, share: float, error: float
    ) -> float:
        """The best share within a step of the grid around the best one of the grid."""
        step = 1 / self.grid
        refined: Any = minimize_scalar(
            lambda other: _norms(case, name, float(other), [power])[0],
            bounds=(max(share - step, step / 2), min(share + step, 1.0)),
            method="bounded",
            options={"xatol": step / 50},
        )
        return float(refined.x) if refined.fun < error else share

    def _powell(self, best: _Best, names: list[str], least: float) -> None:
        def loss(shares: np.ndarray) -> float:
            return best.loss(dict(zip(names, shares.tolist(), strict=True)))

        start = np.array([best.kept[0][name] for name in names])
        minimize(
            loss,
            start,
            method="Powell",
            bounds=[(min(least, low), 1.0) for low in start],
            options={"maxiter": self.iterations, "maxfev": self.evaluations, "xtol": 1e-3},
        )


class _Best:
    """The ranges with the least loss of all that were evaluated; the first of equals."""

    def __init__(self, case: RangeCase) -> None:
        self._loss: Callable[[Shares], float] = case.loss
        self.kept: tuple[Shares, float] = ({}, float("inf"))

    def loss(self, shares: Shares) -> float:
        value = self._loss(shares)
        if not self.kept[0] or value < self.kept[1]:
            self.kept = dict(shares), value
        return value

    def offer(self, shares: Shares) -> tuple[Shares, float]:
        self.loss(shares)
        return self.kept


def vertex(powers: Sequence[float], losses: Sequence[float]) -> float | None:
    """Where the parabola through the losses is least; None unless that is between the powers.

    Args:
        powers: three or more different numbers; with fewer there is no parabola.
        losses: one for each.
    """
    if len(powers) < 3 or not np.isfinite(losses).all():
        return None
    curvature, slope, _ = np.polyfit(powers, losses, 2)
    if curvature <= 0:
        return None
    place = float(-slope / (2 * curvature))
    return place if min(powers) < place < max(powers) else None


def _norms(case: RangeCase, name: str, share: float, powers: Sequence[float]) -> list[float]:
    """Mean |Q(x) - x|^p at one share, for every p."""
    difference = (case.rounded(name, share) - case.samples[name]).abs().double()
    return [float(difference.pow(power).mean()) for power in powers]


lapq = Lapq()
