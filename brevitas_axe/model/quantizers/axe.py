"""Weight quantizers that keep an accumulator budget in every forward (AXE, arXiv 2409.17092).

Pass one as `weight_quant=`; override by prefixed keywords (`weight_bit_width=4`,
`weight_accumulator_bit_width=16`, `weight_accumulator_tile_size=64`) or `.let(...)`.

The scale is a parameter initialised from the weights' statistics, never recomputed from them:
a scale that follows the weights would move after they were solved, and the budget with it.
"""

from brevitas.inject import ExtendedInjector
from brevitas.inject.enum import ScalingImplType, ScalingPerOutputType
from brevitas.quant import (
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFixedPoint,
    Int8WeightPerTensorFloat,
)
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint

from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy, TileScaledWeightQuantProxy


class AccumulatorAware(ExtendedInjector):
    """Mix-in that turns any symmetric integer weight quantizer into an accumulator-aware one."""

    proxy_class = AccumulatorAwareWeightQuantProxy
    scaling_impl_type = ScalingImplType.PARAMETER_FROM_STATS
    accumulator_bit_width = 32
    accumulator_tile_size = None


class Int8WeightPerChannelFloatAXE(AccumulatorAware, Int8WeightPerChannelFloat):
    """8-bit narrow signed weights, one float scale per output channel, bounded accumulator."""


class Int8WeightPerTileFloatAXE(Int8WeightPerChannelFloatAXE):
    """8-bit narrow signed weights, one float scale per output and `group_size` inputs.

    For linear layers whose tile size is the group size: only then does every inner accumulator add
    integers of one scale. The outer sum is one of scaled values, not of integers.
    """

    proxy_class = TileScaledWeightQuantProxy
    scaling_per_output_type = ScalingPerOutputType.GROUP


class Int8WeightPerTensorFloatAXE(AccumulatorAware, Int8WeightPerTensorFloat):
    """8-bit narrow signed weights, one float scale per tensor, bounded accumulator."""


class Int8WeightPerChannelFixedPointAXE(AccumulatorAware, Int8WeightPerChannelFixedPoint):
    """8-bit narrow signed weights, power-of-two scale per output channel, bounded accumulator."""


class Int8WeightPerTensorFixedPointAXE(AccumulatorAware, Int8WeightPerTensorFixedPoint):
    """8-bit narrow signed weights, power-of-two scale per tensor, bounded accumulator."""
