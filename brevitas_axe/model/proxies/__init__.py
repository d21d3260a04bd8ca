"""Brevitas proxies that keep the accumulator budget."""

from brevitas_axe.model.proxies import exits as exits  # registers handlers with Brevitas
from brevitas_axe.model.proxies.minifloat import MinifloatWeightQuantProxy
from brevitas_axe.model.proxies.weight import (
    AccumulatorAwareWeightQuantProxy,
    TileScaledWeightQuantProxy,
)

__all__ = [
    "AccumulatorAwareWeightQuantProxy",
    "MinifloatWeightQuantProxy",
    "TileScaledWeightQuantProxy",
]
