"""Plan → Brevitas model: quantizers that hold the widths and the budget, in place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from brevitas.core.bit_width import BitWidthConst
from brevitas.inject.enum import ScalingImplType, ScalingPerOutputType
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import (
    InvalidOption,
    InvalidPlan,
    InvalidTile,
    NotProven,
    UnsupportedLayer,
)
from brevitas_axe.layers import (
    Layer,
    find_layers,
    integer_weight,
    is_accumulator_aware,
    observe_inputs,
    roll_weight,
    unroll_weight,
)
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.quantizers import Int8WeightPerChannelFloatAXE


def apply_plan(
    model: nn.Module, plan: Plan, args: tuple | None = None, exclude: tuple[str, ...] = ()
) -> nn.Module:
    """Gives every planned layer its widths and an accumulator-aware weight quantizer, in place.

    Args:
        model: a Brevitas model.
        plan: widths by layer name.
        args: arguments of one forward; needed where layers have A2Q or A2Q+ quantizers, whose
            integers depend on the input.
        exclude: names of layers to leave alone.

    Raises:
        InvalidPlan: a planned layer does not exist, or its input bits are set elsewhere.
    """
    layers = find_layers(model, exclude)
    plan.check_names(layers)
    calls = {} if args is None else observe_inputs(model, layers, args)
    for name, precision in plan.layers.items():
        apply_precision(name, layers[name], precision, calls.get(name, ()))
    return model


def apply_precision(
    name: str,
    layer: Layer,
    precision: LayerPrecision,
    arriving: Sequence[InputRange | None] = (),
) -> None:
    """One layer of `apply_plan`; `arriving` is what `observe_inputs` saw at its calls."""
    if precision.tile is not None:
        columns = unroll_weight(layer, layer.weight).shape[-1]
        if precision.tile > columns:
            raise InvalidTile(
                f"tile {precision.tile} is larger than the {columns} inputs of layer '{name}'; "
                "use a smaller tile or None."
            )
    if precision.input is not None:
        _set_input_bits(name, layer, precision.input, arriving)
    make_accumulator_aware(name, layer)
    proxy = layer.weight_quant
    if precision.weight is not None:
        _set_bits(layer, proxy, proxy.tensor_quant, precision.weight)
    proxy.accumulator_bit_width = precision.accumulator
    proxy.accumulator_tile_size = precision.tile


def make_accumulator_aware(name: str, layer: Layer) -> None:
    """Replaces a layer's weight quantizer by ours with the same bits, granularity and scale.

    A2Q and A2Q+ layers keep the integers they compute with: these become the weights.
    """
    old = layer.weight_quant
    if isinstance(old, AccumulatorAwareWeightQuantProxy):
        return
    if len(old.tracked_module_list) > 1:
        raise UnsupportedLayer(
            f"layer '{name}' shares its weight quantizer with another layer, so its scale cannot "
            "be solved for; give each layer its own weight_quant."
        )
    training = layer.training
    layer.eval()
    if is_accumulator_aware(layer):
        if old._cached_act is None:
            raise InvalidOption(
                f"layer '{name}' has an A2Q quantizer, whose integers depend on its input; give "
                "apply_plan the arguments of a forward, args=(x,)."
            )
        integers, scale = integer_weight(name, layer)
        injector: Layer = Int8WeightPerChannelFloatAXE
        injector = injector.let(
            bit_width=int(old.bit_width().max()),
            accumulator_bit_width=int(old.tensor_quant.pre_scaling_impl.accumulator_bit_width()),
        )
        layer.weight.data = (integers * scale.double()).to(layer.weight.dtype)
    else:
        _, scale = integer_weight(name, layer)  # refuses asymmetric weights
        injector = old.quant_injector.let(
            proxy_class=AccumulatorAwareWeightQuantProxy,
            scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS,
            accumulator_bit_width=None,
            accumulator_tile_size=None,
        )
    layer.weight_quant = AccumulatorAwareWeightQuantProxy(layer, injector)
    layer.weight_quant.to(layer.weight.device)
    set_scale(layer, scale.detach())
    layer.train(training)


def is_shared_scale(layer: Layer) -> bool:
    """True when one scale serves the whole weight tensor."""
    injector = layer.weight_quant.quant_injector
    return injector.scaling_per_output == ScalingPerOutputType.TENSOR


def is_power_of_two(layer: Layer) -> bool:
    """True when the weight scale is restricted to powers of two."""
    restrict = layer.weight_quant.tensor_quant.scaling_impl.stats_scaling_impl
    return "PowerOfTwo" in type(restrict.restrict_clamp_scaling.restrict_value_impl).__name__


def current_scale(layer: Layer) -> Tensor:
    """Scale of one of our quantizers, [groups, rows] (a shared one repeated)."""
    with torch.no_grad():
        quant = layer.weight_quant.tensor_quant
        threshold = quant.int_scaling_impl(quant.msb_clamp_bit_width_impl())
        scale = quant.scaling_impl(layer.weight, threshold).detach().flatten()
        groups, rows, _ = unroll_weight(layer, layer.weight).shape
        return scale.expand(groups * rows).reshape(groups, rows)


def set_scale(layer: Layer, scale: Tensor) -> Tensor:
    """Fixes the scale parameter of one of our quantizers; returns the scale it then computes.

    The two may differ in the last bits (the parameter holds the range, scale × largest integer),
    so weights are to be written with the returned one.
    """
    quant = layer.weight_quant.tensor_quant
    impl = quant.scaling_impl
    bit_width = quant.msb_clamp_bit_width_impl()
    threshold = quant.int_scaling_impl(bit_width)
    restrict = impl.stats_scaling_impl.restrict_clamp_scaling.restrict_value_impl
    value = restrict.restrict_init_tensor(scale.double() * threshold.double())
    with torch.no_grad():
        impl.value.data = value.to(impl.value.dtype).view(impl.value.shape).clone()
        impl.init_done = True
        return impl(layer.weight, threshold).detach()


def write_solution(
    name: str, layer: Layer, integers: Tensor, scale: Tensor, bias_shift: Tensor | None
) -> None:
    """Stores solved integers in a layer: scale as parameter, weights = integers × scale.

    Args:
        name: layer name, for messages.
        layer: has one of our quantizers.
        integers: [groups, rows, K].
        scale: [groups, rows].
        bias_shift: [groups, rows] added to the bias, or None.

    Raises:
        NotProven: the quantizer does not give back exactly these integers.
    """
    proxy = layer.weight_quant
    shape = proxy.tensor_quant.scaling_impl.value.shape
    flat = scale.flatten()
    actual = set_scale(layer, flat[:1].view(shape) if is_shared_scale(layer) else flat.view(shape))
    rolled = roll_weight(layer, integers).to(torch.float64)
    with torch.no_grad():
        layer.weight.data = (rolled * actual.double()).to(layer.weight.dtype)
        if bias_shift is not None and layer.bias is not None:
            layer.bias.data += bias_shift.flatten().to(layer.bias)
        stored, _ = integer_weight(name, layer)
    if not torch.equal(stored, rolled.to(torch.int64)):
        raise NotProven(
            f"layer '{name}' does not reproduce its solved integers in {layer.weight.dtype}; "
            "convert the model to float32 first."
        )


def _set_bits(layer: Layer, proxy: Layer, quant: Layer, bits: int) -> bool:
    """Bit width of a proxy's quantizer, whose scale follows; False where it was that already."""
    if int(quant.msb_clamp_bit_width_impl()) == bits:
        return False
    quant.msb_clamp_bit_width_impl = BitWidthConst(bits).to(layer.weight.device)
    proxy.quant_injector = proxy.quant_injector.let(bit_width=bits)
    return True


def _set_input_bits(
    name: str, layer: Layer, bits: int, arriving: Sequence[InputRange | None]
) -> None:
    proxy = layer.input_quant
    if not proxy.is_quant_enabled:
        known = [*arriving, getattr(layer.weight_quant, "input_range", None)]
        if any(reach and (reach.high - reach.low).bit_length() == bits for reach in known):
            return
        raise InvalidPlan(
            f"layer '{name}' takes its input from another layer's quantizer; set the input bits "
            "there and leave them out of this layer's plan."
        )
    quant = proxy.fused_activation_quant_proxy.tensor_quant
    changed = _set_bits(layer, proxy, quant, bits)
    if changed and isinstance(layer.weight_quant, AccumulatorAwareWeightQuantProxy):
        layer.weight_quant.set_input_range(None)
