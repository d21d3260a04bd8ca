"""What a user names in `weight_quant=`."""

from brevitas_axe.quantizers.axe import (
    AccumulatorAware,
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)

__all__ = [
    "AccumulatorAware",
    "Int8WeightPerChannelFixedPointAXE",
    "Int8WeightPerChannelFloatAXE",
    "Int8WeightPerTensorFixedPointAXE",
    "Int8WeightPerTensorFloatAXE",
]
