"""Quantizers for `weight_quant=` and `input_quant=`."""

from brevitas_axe.model.quantizers.axe import (
    AccumulatorAware,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
    Int8WeightPerTileFloatAXE,
)
from brevitas_axe.model.quantizers.dynamic import (
    Int8DynamicActPerTensorFloat,
    Int8DynamicActPerTokenFloat,
    ShiftedUint8DynamicActPerTensorFloat,
    ShiftedUint8DynamicActPerTokenFloat,
)

__all__ = [
    "AccumulatorAware",
    "Int8DynamicActPerTensorFloat",
    "Int8DynamicActPerTokenFloat",
    "Int8WeightPerChannelFixedPointAXE",
    "Int8WeightPerChannelFloatAXE",
    "Int8WeightPerTensorFixedPointAXE",
    "Int8WeightPerTensorFloatAXE",
    "Int8WeightPerTileFloatAXE",
    "ShiftedUint8DynamicActPerTensorFloat",
    "ShiftedUint8DynamicActPerTokenFloat",
]
