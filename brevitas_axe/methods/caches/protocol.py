"""What a method for caches is given, and what it gives: bits for every block's keys and values.

To write your own: define, in a new file of this room, a frozen dataclass with `facts` and the
signature of `CacheBits`, and an instance of it that bears the file's name; its options are the
fields of the dataclass. tests/contracts/test_caches.py runs over every registered one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from brevitas_axe.methods.sensitivity.metrics import Metric
from brevitas_axe.registry import Facts


class CacheBits(Protocol):
    """Picks the bits of every block's cache within a mean over the blocks.

    Attributes:
        facts: for the catalogue.

    Args:
        model: a float model with one stack of blocks; runs in evaluation mode and is left as it is.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        mean_bits: most that the mean over blocks may be, each counted once.
        metric: see `brevitas_axe.methods.sensitivity.score`.
        stack: module name of the stack, where the model has several.

    Returns:
        Block → bits of its keys and values, in the order of the blocks.

    Raises:
        EmptyCalibration: there is no batch.
        InvalidOption: the mean is below the fewest bits that the method gives.
        NonFiniteValues: a batch or a loss contains NaN or infinity.
        UnsupportedLayer: the method cannot tell which layers of a block give keys and values.
    """

    @property
    def facts(self) -> Facts: ...

    def __call__(
        self,
        model: nn.Module,
        calibration: Iterable[Any],
        mean_bits: float,
        metric: str | Metric = ...,
        stack: str | None = ...,
    ) -> dict[str, int]: ...
