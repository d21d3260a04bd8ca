"""How a tuning searches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import check_budget
from brevitas_axe.recipe import Recipe
from brevitas_axe.registry import method


@dataclass(frozen=True)
class Tuning:
    """Settings of the search, which say nothing about what is wanted.

    Attributes:
        minutes: for all trials, those of a killed run with the same state included; no trial begins
            that would probably end later. None for no limit. Half of it is for training, where
            there is data for it.
        trials: most trials; None for as many as there is time for.
        searcher: method of the room `search`.
        decisions: keyword of `quantize` → values to choose from, instead of the usual ones; one
            value leaves no choice. Beside the keywords there are "widths" ("default", and "best",
            "second", ... of the plans that `widths="auto"` tries), "transforms" ("none", or
            methods joined by " + ") and "calibration" (share of the samples of each batch).
        recipe: to start from; what it sets is tried first.
        exclude: names of layers to leave alone.
        earlier: folders of states of other models' tunings, from which the searcher may learn.
        epochs: of training, at most.
        learning_rate: of training.
        cost: beside which trials are shown, and which is made least where a drop is allowed.
        seed: of the searcher and of training.

    Raises:
        InvalidOption: a value that cannot be used, by its name.
    """

    minutes: float | None = 60.0
    trials: int | None = None
    searcher: Any = "genetic:population=4"
    decisions: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    recipe: Recipe | str | Path | None = None
    exclude: Sequence[str] = ()
    earlier: Sequence[str | Path] = ()
    epochs: int = 10
    learning_rate: float = 1e-3
    cost: str = "finn_lut"
    seed: int = 0

    def __post_init__(self) -> None:
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise InvalidOption(f"minutes must be a positive number, not {self.minutes}.")
        for name in ("trials", "epochs"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidOption(f"{name} must be a whole number of at least 1, not {value!r}.")
        if self.minutes is None and self.trials is None:
            raise InvalidOption("tune needs an end: give minutes, or trials.")
        found = method("search", self.searcher)
        if found.repeats:
            raise InvalidOption(
                f"the searcher '{self.searcher}' asks for a configuration again and again, and a "
                "trial of tune gives the same each time; choose another."
            )
        check_budget(self.cost)
        for folder in self.earlier:
            if not Path(folder).is_dir():
                raise InvalidOption(f"there is no folder {folder} with an earlier tuning.")
