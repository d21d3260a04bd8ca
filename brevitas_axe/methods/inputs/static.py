"""One scale per tensor, found by calibration."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas.quant import Int8ActPerTensorFloat, ShiftedUint8ActPerTensorFloat

from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Static:
    """Brevitas's own quantizers, whose range is a high percentile of the calibration data."""

    symmetric = Int8ActPerTensorFloat
    asymmetric = ShiftedUint8ActPerTensorFloat
    facts = Facts(
        kind="–",
        granularity="tensor",
        signal="percentile of calibration",
        export="finn",
        source="Brevitas",
    )


static = Static()
