"""Brevitas's own exports and its inference mode, for models with our quantizers.

Brevitas finds a handler by the exact type of a proxy, and its handlers round the float weights
again. Those here give it projected integers × scale instead, which rounding does not change.
Importing this module registers them.
"""

from __future__ import annotations

from typing import Any

from brevitas.export.inference.handler import IntWeightInferencetHandler
from brevitas.export.inference.manager import InferenceManager
from brevitas.export.onnx.qonnx.handler import BrevitasWeightQuantProxyHandler
from brevitas.export.onnx.qonnx.manager import QONNXManager
from brevitas.export.onnx.standard.qcdq.handler import StdQCDQCastONNXWeightQuantProxyHandler
from brevitas.export.onnx.standard.qcdq.manager import StdQCDQONNXManager
from brevitas.export.torch.qcdq.handler import TorchQCDQCastWeightQuantProxyHandler
from brevitas.export.torch.qcdq.manager import TorchQCDQManager
from torch import Tensor

from brevitas_axe.model.layers import Proxy
from brevitas_axe.model.proxies.weight import (
    AccumulatorAwareWeightQuantProxy,
    TileScaledWeightQuantProxy,
)


class _Projected:
    """Mix-in for a handler of weights, which rounds projected integers × scale."""

    handled_layer = AccumulatorAwareWeightQuantProxy

    def prepare_for_export(self, module: Proxy) -> None:
        projected = [layer.quant_weight() for layer in module.tracked_module_list]
        super().prepare_for_export(module)  # type: ignore[misc]
        addresses = (layer.weight.data_ptr() for layer in module.tracked_module_list)
        values = [weight.value.detach() for weight in projected] if module.is_quant_enabled else []
        # Not a buffer: some handlers are modules, whose state must not have it.
        self.__dict__["projected"] = dict(zip(addresses, values, strict=False))

    def of(self, x: Tensor) -> Tensor:
        """Projected integers × scale of one weight."""
        projected = self.__dict__["projected"]
        return next(iter(projected.values())) if len(projected) == 1 else projected[x.data_ptr()]


class _ProjectedQonnx(_Projected, BrevitasWeightQuantProxyHandler):
    def symbolic_execution(self, x: Tensor) -> Any:
        return super().symbolic_execution(self.of(x))


class _ProjectedQcdq(_Projected):
    def quantize_from_floating_point(self, x: Tensor) -> Tensor:
        return super().quantize_from_floating_point(self.of(x))  # type: ignore[misc]


class _ProjectedOnnxQcdq(_ProjectedQcdq, StdQCDQCastONNXWeightQuantProxyHandler):
    """Stores the integers themselves, unless quantize nodes are asked for."""


class _ProjectedTorchQcdq(_ProjectedQcdq, TorchQCDQCastWeightQuantProxyHandler):
    """The same for TorchScript."""


class _ProjectedInference(_Projected, IntWeightInferencetHandler):
    def forward(self, x: Tensor, unused_scale: Tensor | None = None) -> Any:
        return self.of(x), self.scale, self.zero_point, self.bit_width


class _TileScaled(_Projected):
    """Mix-in: no format has scales per tile, so the weights are written as numbers."""

    handled_layer = TileScaledWeightQuantProxy

    def prepare_for_export(self, module: Proxy) -> None:
        weight = module.tracked_module_list[0].quant_weight()
        value = weight.value.detach()
        self.__dict__["projected"] = {0: value}
        self.__dict__["parts"] = (weight.scale, weight.zero_point, weight.bit_width)

    def symbolic_execution(self, x: Tensor) -> Any:
        return self.of(x), *self.__dict__["parts"]

    def forward(self, x: Tensor, unused_scale: Tensor | None = None) -> Any:
        return self.symbolic_execution(x)


class _TiledQonnx(_TileScaled, BrevitasWeightQuantProxyHandler): ...


class _TiledOnnxQcdq(_TileScaled, StdQCDQCastONNXWeightQuantProxyHandler): ...


class _TiledTorchQcdq(_TileScaled, TorchQCDQCastWeightQuantProxyHandler): ...


class _TiledInference(_TileScaled, IntWeightInferencetHandler): ...


QONNXManager.handlers += [_ProjectedQonnx, _TiledQonnx]
StdQCDQONNXManager.handlers += [_ProjectedOnnxQcdq, _TiledOnnxQcdq]
TorchQCDQManager.handlers += [_ProjectedTorchQcdq, _TiledTorchQcdq]
InferenceManager.handlers += [_ProjectedInference, _TiledInference]
