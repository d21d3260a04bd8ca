"""How wide the grid of every quantizer is, as a share of the range that calibration found.

A fitter is given numbers and functions, no model. To write your own: where it is an error
of each quantizer alone, derive a frozen dataclass from `SearchedRange`; otherwise write a frozen
dataclass that is a `RangeFitter`. Either way, an object of the file's name is the method, and
tests/contracts/test_ranges.py runs over every one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.registry import Facts


@dataclass(frozen=True, eq=False)
class RangeCase:
    """Quantizers whose ranges are to be fitted, at the bits that they have now.

    Attributes:
        samples: quantizer → [n], numbers that arrive there; not to be changed. Weights are divided
            by the ranges of their channels.
        widest: quantizer → largest magnitude on its grid at share 1.
        rounded: function(quantizer, share) → its sample on the grid of that share, [n].
        loss: function(quantizer → share) → mean squared error of the model's output, against the
            model in float; quantizers that are left out have share 1.
    """

    samples: Mapping[str, Tensor]
    widest: Mapping[str, float]
    rounded: Callable[[str, float], Tensor]
    loss: Callable[[Mapping[str, float]], float]


class RangeFitter(Protocol):
    """Chooses a share of the calibrated range for every quantizer of a case.

    Attributes:
        weights: whether cases have the quantizers of weights as well, by convention an option.
        facts: for the catalogue.

    Args:
        case: is not modified.

    Returns:
        Quantizer → share above 0, for every quantizer of the case; 1 leaves its range, and more
        widens it where calibration left numbers outside.
    """

    @property
    def weights(self) -> bool: ...

    @property
    def facts(self) -> Facts: ...

    def __call__(self, case: RangeCase) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class SearchedRange:
    """Tries shares in equal ratios, starting with 1; for each quantizer the least error decides.

    Attributes:
        least: smallest share that is tried.
        steps: ratios between 1 and the smallest.
        weights: whether the ranges of weights are fitted as well.

    Raises:
        InvalidOption: a smallest share outside (0, 1), or fewer than one step.
    """

    least: float = 0.15
    steps: int = 24
    weights: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.least < 1 or self.steps < 1:
            raise InvalidOption(
                "a search of ranges needs a least share between 0 and 1 and at least one step, "
                f"but least is {self.least} and steps is {self.steps}."
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """All shares that are tried, largest first."""
        return tuple(self.least ** (step / self.steps) for step in range(self.steps + 1))

    def candidates(self, case: RangeCase, name: str) -> tuple[float, ...]:
        """The shares that are tried for one quantizer of a case."""
        return self.shares

    def error(self, x: Tensor, rounded: Tensor, largest: float, widest: float) -> float:
        """The error to minimize.

        Args:
            x: [n], the numbers.
            rounded: [n], the same on the grid.
            largest: largest magnitude on the grid.
            widest: largest magnitude on the grid at share 1.
        """
        raise NotImplementedError

    def error_of(self, case: RangeCase, name: str, share: float) -> float:
        """The error of one quantizer at a share."""
        widest = case.widest[name]
        return self.error(case.samples[name], case.rounded(name, share), share * widest, widest)

    def __call__(self, case: RangeCase) -> dict[str, float]:
        def best(name: str) -> float:
            shares = self.candidates(case, name)
            return min(shares, key=lambda share: self.error_of(case, name, share))

        return {name: best(name) for name in case.samples}
