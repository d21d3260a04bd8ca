"""Trials of a tuning, and which of two is better."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from brevitas_axe.errors import InvalidOption
from brevitas_axe.recipe import Recipe


@dataclass(frozen=True)
class Trial:
    """One configuration, solved and judged.

    Attributes:
        configuration: decision → value.
        value: what the validation function says, larger is better; NaN where it says nothing.
        costs: of one sample.
        bits: means over the layers, such as W4A8.
        seconds: it took.
        refused: why there is no model; None where there is one.
        fits: the budget.
        trained: after how many epochs of training; 0 for none.
    """

    configuration: Mapping[str, Any]
    value: float = math.nan
    costs: Mapping[str, float] = field(default_factory=dict)
    bits: str = ""
    seconds: float = 0.0
    refused: str | None = None
    fits: bool = True
    trained: int = 0


@dataclass(frozen=True)
class Goal:
    """The best value; or, where a drop is allowed, the least cost within it.

    Attributes:
        unquantized: value of the float model.
        drop: from it that is allowed, as a number or as a share of it ("1%"); None for any.
        cost: that is made least within the drop.
        reference: cost of a plain call of `quantize`.
    """

    unquantized: float
    drop: float | str | None = None
    cost: str = ""
    reference: float = 1.0

    @property
    def needed(self) -> float | None:
        """Least value within the drop; None where any will do."""
        if self.drop is None:
            return None
        return self.unquantized - _lost(self.drop, self.unquantized)

    def meets(self, trial: Trial) -> bool:
        """Whether a trial is what was asked for."""
        if trial.refused is not None or not trial.fits or math.isnan(trial.value):
            return False
        return self.needed is None or trial.value >= self.needed

    def score(self, trial: Trial) -> float:
        """Larger is better, in units of the float model's value; NaN for what is no answer."""
        if trial.refused is not None or not trial.fits:
            return math.nan
        scale = abs(self.unquantized)
        scale = scale if 0 < scale < math.inf else 1.0
        if self.needed is None:
            return trial.value / scale
        if not trial.value >= self.needed:
            return (trial.value - self.needed) / scale  # below 0, or NaN
        return self.reference / max(trial.costs.get(self.cost, math.inf), 1e-9)


def check_drop(drop: float | str | None) -> None:
    """Raises InvalidOption for a drop that is neither a number nor a share."""
    try:
        lost = _lost(0.0 if drop is None else drop, 1.0)
    except (TypeError, ValueError):
        lost = math.nan
    if not 0 <= lost < math.inf:
        raise InvalidOption(
            f"max_drop is a number of at least 0, or a share of the float model's value such as "
            f"'1%', not {drop!r}."
        )


def _lost(drop: float | str, value: float) -> float:
    """How much of a value a drop allows to lose: a number, or a share of it.

    Raises:
        TypeError, ValueError: it is neither.
    """
    share = Recipe.share(drop) if isinstance(drop, str) else math.nan
    return float(drop) if math.isnan(share) else share * abs(value)
