"""The whole range that calibration found."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_axe.methods.ranges.protocol import RangeCase
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Max:
    """Clips nothing that calibration did not clip: the baseline of the other methods.

    It leaves weights alone in any case.
    """

    weights = False
    facts = Facts(kind="–", granularity="tensor", signal="none", export="finn", source="Brevitas")

    def __call__(self, case: RangeCase) -> dict[str, float]:
        return dict.fromkeys(case.samples, 1.0)


max = Max()
