"""One scale per token (per vector along the last dimension), found when it arrives."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_axe.model.quantizers import (
    Int8DynamicActPerTokenFloat,
    ShiftedUint8DynamicActPerTokenFloat,
)
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class PerToken:
    """The range is that of one token's channels, at every call (ZeroQuant, arXiv 2206.01861)."""

    symmetric = Int8DynamicActPerTokenFloat
    asymmetric = ShiftedUint8DynamicActPerTokenFloat
    facts = Facts(
        kind="–",
        granularity="token",
        signal="range at run time",
        export="none",
        source="arXiv 2206.01861",
    )


per_token = PerToken()
