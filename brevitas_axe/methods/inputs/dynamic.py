"""One scale per tensor, found when the tensor arrives."""

from __future__ import annotations

from dataclasses import dataclass

from brevitas_axe.model.quantizers import (
    Int8DynamicActPerTensorFloat,
    ShiftedUint8DynamicActPerTensorFloat,
)
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Dynamic:
    """The range is that of the whole tensor, at every call."""

    symmetric = Int8DynamicActPerTensorFloat
    asymmetric = ShiftedUint8DynamicActPerTensorFloat
    facts = Facts(
        kind="–", granularity="tensor", signal="range at run time", export="none", source="Brevitas"
    )


dynamic = Dynamic()
