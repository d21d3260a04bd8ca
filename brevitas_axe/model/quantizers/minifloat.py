"""Brevitas's quantizers of floating-point numbers of few bits, by the name of the format.

Formats are those of the OCP specifications, signed and saturating; scales are in front of them, as
of integers: what a scale divides is rounded to the nearest number of the format.
"""

from __future__ import annotations

from typing import Any

from brevitas.inject.enum import RestrictValueType, ScalingImplType
from brevitas.quant.float_quant_ocp import (
    FpOCPActPerTensorFloat,
    FpOCPWeightPerChannelFloat,
    FpOCPWeightPerTensorFloat,
)

from brevitas_axe.formats import minifloat
from brevitas_axe.model.proxies.minifloat import MinifloatWeightQuantProxy


def weight_injector(format: str, shared: bool = False, power_of_two: bool = False) -> Any:
    """A weight quantizer whose scale is a parameter that begins with the weights' largest.

    Args:
        format: its name.
        shared: one scale for all weights, instead of one for each output channel.
        power_of_two: whether scales are.
    """
    base: Any = FpOCPWeightPerTensorFloat if shared else FpOCPWeightPerChannelFloat
    restrict = RestrictValueType.POWER_OF_TWO if power_of_two else RestrictValueType.FP
    return base.let(
        **_widths(format),
        proxy_class=MinifloatWeightQuantProxy,
        scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS,
        restrict_scaling_type=restrict,
    )


def input_injector(format: str, largest: float, **more: Any) -> Any:
    """A quantizer of activations with one scale, under which the format ends at the largest."""
    base: Any = FpOCPActPerTensorFloat
    return base.let(
        **_widths(format),
        scaling_impl_type=ScalingImplType.PARAMETER,
        scaling_init=largest,
        **more,
    )


def _widths(format: str) -> dict[str, int]:
    known = minifloat(format)
    return {
        "bit_width": known.bits,
        "exponent_bit_width": known.exponent,
        "mantissa_bit_width": known.mantissa,
    }
