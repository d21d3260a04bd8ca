"""Weight proxy of a floating-point format, whose numbers a solver keeps within an accumulator."""

from __future__ import annotations

from typing import Any

from brevitas.export.inference.handler import FloatWeightInferencetHandler
from brevitas.export.inference.manager import InferenceManager
from brevitas.export.onnx.qonnx.handler import BrevitasWeightFloatQuantProxyHandler
from brevitas.export.onnx.qonnx.manager import QONNXManager
from brevitas.proxy import WeightFloatQuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.model.proxies.observed import ObservedInput


class MinifloatWeightQuantProxy(ObservedInput, WeightFloatQuantProxyFromInjector):
    """Brevitas's quantizer of floating-point weights, with the widths that its layer keeps.

    It rounds to nearest and projects nothing: solved weights are its own numbers already, and their
    sums fit. Weights that are trained may leave the accumulator.

    Attributes:
        accumulator_bit_width: P of the exact fixed-point accumulator; None for no limit.
        accumulator_tile_size: inputs per inner accumulator; None means the whole dot product.
    """

    def __init__(self, quant_layer: nn.Module, quant_injector: Any) -> None:
        super().__init__(quant_layer, quant_injector)
        self.accumulator_bit_width: int | None = None
        self.accumulator_tile_size: int | None = None
        self.begin_observing()

    @property
    def scale_tile(self) -> int | None:
        """Inputs of a row that share one scale: None, the whole row does."""
        return None

    def per_weight(self, scale: Tensor) -> Tensor:
        """A scale of this quantizer, broadcastable to the weights."""
        return scale


class _MinifloatQonnx(BrevitasWeightFloatQuantProxyHandler):
    handled_layer = MinifloatWeightQuantProxy


class _MinifloatInference(FloatWeightInferencetHandler):
    handled_layer = MinifloatWeightQuantProxy


QONNXManager.handlers += [_MinifloatQonnx]
InferenceManager.handlers += [_MinifloatInference]
