"""Brevitas's own A2Q and A2Q+ (arXiv 2308.13504, 2401.10432), for layers that exist already.

Their weights are normalized, w/||w||_1 times a learned norm g, and g/s is clipped to the largest
l1 norm T within the budget, so every step of training changes every weight. Brevitas keeps
the scale s twice, before and after rounding; both start out equal here.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from brevitas.core.restrict_val import PowerOfTwoRestrictValue
from brevitas.inject.enum import ScalingPerOutputType
from brevitas.quant import (
    Int8AccumulatorAwareWeightQuant,
    Int8AccumulatorAwareZeroCenterWeightQuant,
)
from torch import Tensor

from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.model.layers import Layer, Proxy, is_accumulator_aware

A2Q_QUANTIZERS = {
    "a2q": Int8AccumulatorAwareWeightQuant,
    "a2q+": Int8AccumulatorAwareZeroCenterWeightQuant,
}


def a2q_kind(layer: Layer) -> str | None:
    """Which of the two a layer has, None for any other quantizer."""
    if not is_accumulator_aware(layer):
        return None
    return "a2q+" if _is_centred(layer) else "a2q"


def _is_centred(layer: Layer) -> bool:
    return hasattr(layer.weight_quant.tensor_quant.pre_scaling_impl, "pre_zero_point")


def a2q_granularity(layer: Layer) -> tuple[bool, bool]:
    """(one scale for the whole tensor, restricted to powers of two) of one of the two."""
    impl = layer.weight_quant.tensor_quant.scaling_impl
    restrict = impl.restrict_clamp_scaling.restrict_value_impl
    return impl.value.dim() == 0, isinstance(restrict, PowerOfTwoRestrictValue)


def build_a2q(
    layer: Layer, kind: str, bit_width: int, scale: Tensor, shared: bool, power_of_two: bool
) -> None:
    """Gives a layer one of the two quantizers, in place; its weights stay.

    Args:
        layer: a Brevitas layer.
        kind: key of A2Q_QUANTIZERS.
        bit_width: of the weights.
        scale: to start from, as a Brevitas quantizer gives it.
        shared: one scale for the whole tensor.
        power_of_two: restricts the scale.
    """
    options: dict[str, object] = {"bit_width": bit_width}
    if shared:
        options["scaling_per_output_type"] = ScalingPerOutputType.TENSOR
    if power_of_two:
        options["restrict_scaling_impl"] = PowerOfTwoRestrictValue
    injector: Proxy = A2Q_QUANTIZERS[kind]
    injector = injector.let(**options)
    layer.weight_quant = injector.proxy_class(layer, injector)
    layer.weight_quant.to(layer.weight.device, layer.weight.dtype)
    layer.weight_quant.train(layer.training)
    set_a2q_scale(layer, scale)


def a2q_scale(layer: Layer) -> Tensor:
    """Scale behind the rounding."""
    return layer.weight_quant.tensor_quant.scaling_impl(layer.weight).detach()


def set_a2q_scale(layer: Layer, scale: Tensor) -> None:
    """Writes both scales."""
    quant = layer.weight_quant.tensor_quant
    with torch.no_grad():
        for impl in (quant.scaling_impl, quant.pre_scaling_impl.scaling_impl):
            restrict = impl.restrict_clamp_scaling.restrict_value_impl
            impl.value.copy_(restrict.restrict_init_tensor(scale.detach()).view(impl.value.shape))


@dataclass(frozen=True)
class A2QNorm:
    """Norm of a layer's rows and its bound, in units of the weights, [rows, 1, ...].

    Attributes:
        norm: g, differentiable.
        bound: s·T, differentiable.
        centred: whether rows are zero-centred before they are normalized.
    """

    norm: Tensor
    bound: Tensor
    centred: bool


def a2q_norm(name: str, layer: Layer) -> A2QNorm:
    """Reads g and s·T.

    Raises:
        MissingInputQuantizer: the layer has not seen an input yet.
    """
    arrived = layer.weight_quant._cached_act
    if arrived is None:
        raise MissingInputQuantizer(
            f"layer '{name}' has an A2Q quantizer, whose bound follows its input, and has seen "
            "none yet; call apply_plan with the arguments of a forward, args=(x,)."
        )
    pre = layer.weight_quant.tensor_quant.pre_scaling_impl
    norm = pre.restrict_clamp_scaling(pre.value)
    bound = pre.scaling_impl(layer.weight) * pre.calc_max_l1_norm(arrived.bit_width, arrived.signed)
    return A2QNorm(norm, bound, _is_centred(layer))


def clip_a2q_norm(name: str, layer: Layer) -> None:
    """Lowers g to its bound where it is above: there, the clamp gives g no gradient."""
    found = a2q_norm(name, layer)
    pre = layer.weight_quant.tensor_quant.pre_scaling_impl
    with torch.no_grad():
        smaller = torch.minimum(found.norm, found.bound.expand_as(found.norm))
        restrict = pre.restrict_clamp_scaling.restrict_value_impl
        pre.value.copy_(restrict.restrict_init_tensor(smaller))
