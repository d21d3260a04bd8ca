"""Gives weights and inputs Brevitas's quantizers of floating-point formats, in place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from brevitas.proxy import ActFloatQuantProxyFromInjector, ActQuantProxyFromInjector
from brevitas.quant_tensor import FloatQuantTensor
from torch import Tensor, nn

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.formats import minifloat
from brevitas_axe.model.apply.ranges import AdjustableRange, range_parameter
from brevitas_axe.model.layers import DOT_PRODUCTS, Layer, Proxy
from brevitas_axe.model.minifloats import format_of
from brevitas_axe.model.proxies import MinifloatWeightQuantProxy
from brevitas_axe.model.quantizers.minifloat import input_injector, weight_injector


def weight_format(layer: Layer) -> str | None:
    """The floating-point format of a layer's weights; None where they are integers."""
    if not isinstance(layer.weight_quant, MinifloatWeightQuantProxy):
        return None
    return format_of(cast(FloatQuantTensor, layer.quant_weight()))


def weight_numbers(layer: Layer) -> tuple[int, int, int | None]:
    """Smallest and largest integer of a layer's weights, and the significant bits of a format."""
    format = weight_format(layer)
    if format is not None:
        known = minifloat(format)
        return known.integers[0], known.integers[-1], known.significant
    quant = layer.weight_quant.tensor_quant
    bits = quant.msb_clamp_bit_width_impl()
    return int(quant.int_quant.min_int(bits)), int(quant.int_quant.max_int(bits)), None


def give_weights(layer: Layer, format: str, shared: bool, power_of_two: bool) -> None:
    """Replaces a layer's weight quantizer; scales begin with the largest weights.

    Args:
        layer: a linear layer or convolution.
        format: of its weights.
        shared: one scale for all weights, instead of one for each output channel.
        power_of_two: whether scales are.
    """
    training = layer.training
    injector = weight_injector(format, shared, power_of_two)
    layer.weight_quant = MinifloatWeightQuantProxy(layer, injector)
    layer.weight_quant.to(layer.weight.device)
    return_plain(layer)
    layer.train(training)
    set_unit(layer, unit(layer))  # statistics are not asked again


def return_plain(layer: Any) -> None:
    """Lets a layer return plain numbers: Brevitas knows no type for sums of floats."""
    if not layer.output_quant.is_quant_enabled:
        layer.return_quant_tensor = False


def unit(layer: Layer) -> Tensor:
    """What one integer of floating-point weights stands for: the scale times the finest step."""
    with torch.no_grad():
        weight = layer.weight_quant(layer.weight)
    return weight.scale.detach() * float(minifloat(format_of(weight)).step)


@torch.no_grad()
def set_unit(layer: Layer, wanted: Tensor) -> Tensor:
    """Fixes the scale of floating-point weights; returns the unit that it then gives.

    The two may differ in the last bits, as the parameter is the range.

    Args:
        layer: with floating-point weights.
        wanted: shaped like `unit(layer)`.
    """
    impl = layer.weight_quant.tensor_quant.scaling_impl
    restrict = impl.stats_scaling_impl.restrict_clamp_scaling.restrict_value_impl
    before = unit(layer)  # a scale that is still to be found is found here
    value = impl.value.detach()
    as_range = restrict.restrict_init_tensor(wanted.double() / before.double())
    # Of logarithms the sum is the product.
    logarithmic = "PowerOfTwo" in type(restrict).__name__
    as_range = as_range.view(value.shape).to(value)
    impl.value.data = (value.round() + as_range) if logarithmic else value * as_range
    return unit(layer)


def give_inputs(model: nn.Module, proxies: Iterable[Proxy], format: str) -> None:
    """Replaces static activation quantizers, wherever they are; calibrated ranges stay.

    Args:
        model: holds the quantizers.
        proxies: of integers, that share a range.
        format: of what they give from now on.

    Raises:
        UnsupportedLayer: a quantizer that is computed at run time, or of another kind.
    """
    proxies = list(proxies)
    names = {proxy: name for name, proxy in model.named_modules()}
    for proxy in proxies:
        value = range_parameter(proxy)
        if type(proxy) is not ActQuantProxyFromInjector or value is None:
            raise UnsupportedLayer(
                f"the quantizer '{names[proxy]}' is a {type(proxy).__name__}, which cannot become "
                f"one of {format}; use static inputs, or plan integers."
            )
        largest = AdjustableRange([proxy], value).widest
        old: Any = proxy.quant_injector
        more = {key: getattr(old, key) for key in ("act_impl", "passthrough_act") if key in old}
        holder, _, attribute = names[proxy].rpartition(".")
        parent: Any = model.get_submodule(holder)
        injector = input_injector(format, largest, **more)
        made = ActFloatQuantProxyFromInjector(parent, injector)
        setattr(parent, attribute, made.to(value.device).train(proxy.training))
    for module in model.modules():  # whichever of them read it
        if isinstance(module, DOT_PRODUCTS):
            return_plain(module)
