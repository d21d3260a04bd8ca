"""OPT-m of MPTQ-ViT (arXiv 2401.14895): fine steps around zero, steps of 2^m times that above."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from brevitas_axe.model.quantizers.two_region import Int8TwoRegionActPerTensorFloat
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class TwoRegion:
    """Two quantizers of b − 1 bits whose sum is an integer: Δ·(a + 2^m·c).

    With T = (2^(b−2) − 1)·Δ, a is round(x/Δ) in signed b − 1 bits and c is round((x − T)/(2^m·Δ))
    from 0 to 2^(b−1) − 1. So integers go from −2^(b−2) to 2^(b−2) − 1 + 2^m·(2^(b−1) − 1): at b = 4
    and m = 1 to 17. That exact range counts in the budget and the certificate. m and Δ have the
    least squared error of calibration, with channels weighed by their weights' energy; the ordinary
    grid of b bits is a candidate, so that a layer without a long tail keeps it. The formulas are
    reconstructed. A wider range costs budget: it is for layers whose accumulators have room.

    Attributes:
        exponent: largest m.

    Raises:
        InvalidOption: an exponent below 0 or above 8.
    """

    exponent: int = 4

    # There is no zero point: it would move the end of the first region.
    asymmetric = None
    facts = Facts(
        kind="–",
        granularity="tensor",
        signal="squared error of calibration",
        export="qonnx",
        source="arXiv 2401.14895 (reconstruction)",
    )

    def __post_init__(self) -> None:
        check_ranges(self, exponent=(0, 8))

    @property
    def symmetric(self) -> Any:
        """The injector."""
        injector: Any = Int8TwoRegionActPerTensorFloat
        return injector.let(largest_exponent=self.exponent)


two_region = TwoRegion()
