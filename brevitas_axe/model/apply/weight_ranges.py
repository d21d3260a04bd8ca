"""Ranges of weights, in units of the range that each output channel (or tile) has by itself."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from brevitas_axe.model.apply.ranges import AdjustableRange
from brevitas_axe.model.apply.weights import current_scale
from brevitas_axe.model.layers import DOT_PRODUCTS, Layer, Proxy
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.running import evaluating


class WeightRange(AdjustableRange):
    """The ranges of one layer's weights; one share for all of them.

    Numbers are divided by the range of their own scale, so that the largest magnitude on the grid
    of share 1 is 1 for every channel.

    Args:
        layer: has one of our quantizers.
    """

    def __init__(self, layer: Layer) -> None:
        current_scale(layer)  # a range that is still to be found is found here
        proxy = layer.weight_quant
        super().__init__([proxy], proxy.tensor_quant.scaling_impl.value)
        self._layer = layer
        self.set_share(1.0)
        quant = proxy.tensor_quant
        threshold = quant.int_scaling_impl(quant.msb_clamp_bit_width_impl())
        scale = quant.scaling_impl(layer.weight, threshold).detach()
        self._unit = proxy.per_weight(scale * threshold).expand_as(layer.weight)

    @property
    def widest(self) -> float:
        """The largest magnitude of the calibrated range, in its own units."""
        return 1.0

    @property
    def sample(self) -> Tensor:
        """The weights, [n]."""
        return (self._layer.weight.detach() / self._unit).flatten()

    @torch.no_grad()
    def rounded(self, share: float) -> Tensor:
        """The weights on the grid of a share at the present bits, with no accumulator's limit."""
        self.set_share(share)
        with evaluating(self._layer.weight_quant):
            value, *_ = self._layer.weight_quant.tensor_quant(self._layer.weight.detach())
        return (value / self._unit).flatten()


@torch.no_grad()
def weight_ranges(model: nn.Module) -> dict[str, WeightRange]:
    """The ranges of all weights that have a quantizer of ours to themselves.

    Others follow the weights' statistics and have no range to be set.

    Returns:
        Name of the quantizer → its range.
    """
    found: dict[str, WeightRange] = {}
    for name, module in model.named_modules():
        if not isinstance(module, DOT_PRODUCTS):
            continue
        layer = cast(Layer, module)
        proxy: Proxy = layer.weight_quant
        ours = isinstance(proxy, AccumulatorAwareWeightQuantProxy) and proxy.is_quant_enabled
        if ours and len(proxy.tracked_module_list) == 1:
            found[f"{name}.weight_quant".removeprefix(".")] = WeightRange(layer)
    return found
