"""Applies a plan to a Brevitas model: quantizers that keep widths and budgets, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import torch
from brevitas.inject.enum import ScalingImplType, ScalingPerOutputType, StatsOp
from brevitas.proxy.float_parameter_quant import WeightFloatQuantProxyFromInjectorBase
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption, InvalidPlan, InvalidTile, NotProven, UnsupportedLayer
from brevitas_axe.formats import is_format
from brevitas_axe.model.apply.activations import set_input_bits
from brevitas_axe.model.apply.minifloats import give_weights, set_unit, unit, weight_format
from brevitas_axe.model.apply.ranges import FittedBitWidth, write_bits
from brevitas_axe.model.apply.weight_bits import set_weight_bits
from brevitas_axe.model.layers import (
    Layer,
    Proxy,
    find_layers,
    integer_weight,
    is_accumulator_aware,
    roll_weight,
    unroll_weight,
)
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)
from brevitas_axe.model.quantizers.a2q import (
    a2q_granularity,
    a2q_kind,
    a2q_scale,
    build_a2q,
    set_a2q_scale,
)
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.plan import LayerPrecision, Plan

# Ours, or one of Brevitas's.
Quantizer = Literal["axe", "a2q", "a2q+"]

# (one scale per tensor, power of two) → quantizer that replaces an A2Q quantizer.
_LIKE_A2Q = {
    (False, False): Int8WeightPerChannelFloatAXE,
    (True, False): Int8WeightPerTensorFloatAXE,
    (False, True): Int8WeightPerChannelFixedPointAXE,
    (True, True): Int8WeightPerTensorFixedPointAXE,
}

# A quantizer with a constant scale has no statistics to begin with; its scale is set anyway.
_STATISTICS = {"scaling_stats_op": StatsOp.MAX}


def apply_plan(
    model: nn.Module,
    plan: Plan,
    args: tuple | None = None,
    exclude: tuple[str, ...] = (),
    quantizer: Quantizer = "axe",
) -> nn.Module:
    """Gives every planned layer its widths and an accumulator-aware weight quantizer, in place.

    Weights stay as they are, and parameters stay the same objects, so that a live model can be
    given another plan between two steps of an optimizer; the next forward keeps the new budget.
    Only a change of `quantizer` makes new scale parameters, which an optimizer must be given.

    Args:
        model: a Brevitas model.
        plan: widths by layer name.
        args: arguments of one forward, which shows the input range of every layer;
            needed where layers have A2Q or A2Q+ quantizers, or get them, and where input bits are
            planned for a layer whose input another layer's quantizer gives, or a floating-point
            format is.
        exclude: names of layers to leave alone.
        quantizer: "axe" (ours), "a2q" or "a2q+" (Brevitas's).

    Raises:
        InvalidPlan: a planned layer does not exist, its input bits are set elsewhere and there are
            no args, two layers want different bits of one quantizer, or a layer is to have tiles
            with A2Q.
        InvalidOption: unknown quantizer, or A2Q without args.
    """
    if quantizer not in get_args(Quantizer):
        names = ", ".join(get_args(Quantizer))
        raise InvalidOption(f"quantizer '{quantizer}' is unknown; choose from {names}.")
    if quantizer != "axe" and args is None:
        raise InvalidOption(
            "A2Q quantizers depend on their inputs; give apply_plan the arguments of a forward, "
            "args=(x,)."
        )
    layers = find_layers(model, exclude)
    plan.check_names(layers)
    if args is not None and any(precision.input for precision in plan.layers.values()):
        set_input_bits(model, plan, args, exclude=exclude)
    calls = {} if args is None else observe_inputs(model, layers, args)
    for name, precision in plan.layers.items():
        apply_precision(name, layers[name], precision, calls.get(name, ()), quantizer)
    if args is not None:
        # New quantizers have seen no input yet, and input bits may have changed.
        observe_inputs(model, {name: layers[name] for name in plan.layers}, args)
    return model


def apply_precision(
    name: str,
    layer: Layer,
    precision: LayerPrecision,
    arriving: Sequence[InputRange | None] = (),
    quantizer: Quantizer = "axe",
) -> None:
    """`apply_plan` for one layer; `arriving` are its input ranges, call by call."""
    if precision.tile is not None:
        columns = unroll_weight(layer, layer.weight).shape[-1]
        if precision.tile > columns:
            raise InvalidTile(
                f"tile {precision.tile} is larger than the {columns} inputs of layer '{name}'; "
                "use a smaller tile or None."
            )
    if isinstance(precision.input, str):
        _check_format(name, precision.input, arriving)
    elif precision.input is not None:
        _set_input_bits(name, layer, precision.input, arriving)
    if quantizer != "axe":
        precision.check_integers(name, "A2Q bounds")
        _make_a2q(name, layer, precision, quantizer)
        return
    if isinstance(precision.weight, str):
        _give_format(name, layer, precision.weight)
    elif weight_format(layer) is None:
        make_accumulator_aware(name, layer)
    elif precision.weight is not None:
        raise InvalidPlan(
            f"layer '{name}' has floating-point weights, and its plan wants integers of "
            f"{precision.weight} bits; begin with the model before it was quantized."
        )
    proxy = layer.weight_quant
    if isinstance(precision.weight, int):
        set_weight_bits(proxy, precision.weight)
    proxy.accumulator_bit_width = precision.accumulator
    proxy.accumulator_tile_size = precision.tile


def _give_format(name: str, layer: Layer, format: str) -> None:
    """Floating-point weights, with the granularity and the kind of scale that the layer has."""
    now = weight_format(layer)
    if now is None:
        make_accumulator_aware(name, layer)  # refuses what is not symmetric
    if now != format:
        give_weights(layer, format, is_shared_scale(layer), is_power_of_two(layer))


def _check_format(name: str, format: str, arriving: Sequence[InputRange | None]) -> None:
    """Raises InvalidPlan where a layer's input is not in its planned floating-point format."""
    if not arriving or not all(is_format(numbers, format) for numbers in arriving):
        raise InvalidPlan(
            f"layer '{name}' is planned with inputs in {format}, but none arrive; give apply_plan "
            "the arguments of a forward, args=(x,), and quantize the input in front of the layer."
        )


def make_accumulator_aware(name: str, layer: Layer) -> None:
    """Replaces a layer's weight quantizer by ours with the same bits, granularity and scale.

    A2Q and A2Q+ layers keep the integers they compute with: these become the weights.
    """
    old = layer.weight_quant
    if isinstance(old, AccumulatorAwareWeightQuantProxy):
        return
    _check_unshared(name, layer)
    training = layer.training
    layer.eval()
    if is_accumulator_aware(layer):
        if old._cached_act is None:
            raise InvalidOption(
                f"layer '{name}' has an A2Q quantizer, whose integers depend on its input; give "
                "apply_plan the arguments of a forward, args=(x,)."
            )
        integers, scale = integer_weight(name, layer)
        injector: Proxy = _LIKE_A2Q[a2q_granularity(layer)]
        injector = injector.let(
            bit_width=int(old.bit_width().max()),
            accumulator_bit_width=int(old.tensor_quant.pre_scaling_impl.accumulator_bit_width()),
        )
        layer.weight.data = (integers * scale.double()).to(layer.weight.dtype)
    else:
        _check_integers(name, old)
        _, scale = integer_weight(name, layer)  # refuses asymmetric weights
        statistics = {} if "scaling_stats_op" in old.quant_injector else _STATISTICS
        injector = old.quant_injector.let(
            **statistics,
            proxy_class=AccumulatorAwareWeightQuantProxy,
            scaling_impl_type=ScalingImplType.PARAMETER_FROM_STATS,
            accumulator_bit_width=None,
            accumulator_tile_size=None,
        )
    layer.weight_quant = AccumulatorAwareWeightQuantProxy(layer, injector)
    layer.weight_quant.to(layer.weight.device)
    set_scale(layer, scale.detach())
    layer.train(training)


def _check_integers(name: str, proxy: Proxy) -> None:
    if isinstance(proxy, WeightFloatQuantProxyFromInjectorBase):
        raise UnsupportedLayer(
            f"layer '{name}' has floating-point weights of its own quantizer; give it integers, "
            "and plan the format for it, or exclude it by name, "
            f"exclude=('{name}',)."
        )
    if not hasattr(proxy.tensor_quant, "int_quant"):
        raise UnsupportedLayer(
            f"layer '{name}' has binary or ternary weights, which no solver can make smaller; give "
            "it integers of 2 bits or more, such as Int8WeightPerChannelFloatAXE, or "
            f"exclude it by name, exclude=('{name}',)."
        )


def _check_unshared(name: str, layer: Layer) -> None:
    if len(layer.weight_quant.tracked_module_list) > 1:
        raise UnsupportedLayer(
            f"layer '{name}' shares its weight quantizer with another layer, so its scale cannot "
            "be solved for; give each layer its own weight_quant."
        )


def _make_a2q(name: str, layer: Layer, precision: LayerPrecision, kind: str) -> None:
    """Gives a layer Brevitas's A2Q or A2Q+, with its own weights, scale and granularity."""
    if precision.tile is not None:
        raise InvalidPlan(
            f"layer '{name}' is planned with tiles, but A2Q bounds whole dot products; leave the "
            "tile out, or use quantizer='axe'."
        )
    old = a2q_kind(layer)
    if old != kind:
        _check_unshared(name, layer)
        bits = int(layer.weight_quant.tensor_quant.msb_clamp_bit_width_impl())
        if old is None:
            make_accumulator_aware(name, layer)  # refuses what is not symmetric
            scale, power_of_two = layer.weight_quant.scale(), is_power_of_two(layer)
            shared = is_shared_scale(layer)
        else:
            scale = a2q_scale(layer)
            shared, power_of_two = a2q_granularity(layer)
        build_a2q(layer, kind, bits, scale, shared, power_of_two)
    proxy = layer.weight_quant
    quant = proxy.tensor_quant
    if precision.weight_bits is not None:
        before = _largest_integer(quant)
        if set_weight_bits(proxy, precision.weight_bits):
            set_a2q_scale(layer, a2q_scale(layer) * (before / _largest_integer(quant)))
    if precision.accumulator is not None:
        quant.pre_scaling_impl.accumulator_bit_width.bit_width.fill_(precision.accumulator)


def _largest_integer(quant: Proxy) -> int:
    return max(int(quant.decoupled_int_quant.max_int(quant.msb_clamp_bit_width_impl())), 1)


def is_shared_scale(layer: Layer) -> bool:
    """True when one scale serves the whole weight tensor."""
    injector = layer.weight_quant.quant_injector
    return injector.scaling_per_output == ScalingPerOutputType.TENSOR


def is_power_of_two(layer: Layer) -> bool:
    """True when the weight scale is restricted to powers of two."""
    restrict = layer.weight_quant.tensor_quant.scaling_impl.stats_scaling_impl
    return "PowerOfTwo" in type(restrict.restrict_clamp_scaling.restrict_value_impl).__name__


def current_scale(layer: Layer) -> Tensor:
    """Scale of one of our quantizers, [groups, rows] (a shared one repeated).

    [groups, rows, tiles] where each tile has its own. Of floating-point weights it is what an
    integer on their finest grid stands for.
    """
    with torch.no_grad():
        if weight_format(layer) is not None:
            scale = unit(layer).flatten()
        else:
            quant = layer.weight_quant.tensor_quant
            threshold = quant.int_scaling_impl(quant.msb_clamp_bit_width_impl())
            scale = quant.scaling_impl(layer.weight, threshold).detach().flatten()
        groups, rows, _ = unroll_weight(layer, layer.weight).shape
        if layer.weight_quant.scale_tile is not None:
            return scale.reshape(groups, rows, -1)
        return scale.expand(groups * rows).reshape(groups, rows)


def set_scale(layer: Layer, scale: Tensor) -> Tensor:
    """Fixes the scale parameter of one of our quantizers; returns the scale it then computes.

    The two may differ in the last bits (the parameter is the range, scale × largest integer),
    so weights must be written with the returned one.
    """
    if weight_format(layer) is not None:
        return set_unit(layer, scale.view(unit(layer).shape))
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
        scale: as `current_scale` gives it.
        bias_shift: [groups, rows] added to the bias, or None.

    Raises:
        NotProven: the quantizer does not give back exactly these integers.
    """
    proxy = layer.weight_quant
    shape = proxy.tensor_quant.scaling_impl.value.shape
    bits = getattr(proxy.tensor_quant, "msb_clamp_bit_width_impl", None)
    if isinstance(bits, FittedBitWidth):
        # The ranges were fitted to weights that are no more.
        proxy.tensor_quant.msb_clamp_bit_width_impl = bits.bit_width
    flat = scale.flatten()
    actual = set_scale(layer, flat[:1].view(shape) if is_shared_scale(layer) else flat.view(shape))
    rolled = roll_weight(layer, integers).to(torch.float64)
    with torch.no_grad():
        size = proxy.per_weight(actual.double())
        layer.weight.data = (rolled * size).to(layer.weight.dtype)
        if bias_shift is not None and layer.bias is not None:
            layer.bias.data += bias_shift.flatten().to(layer.bias)
        stored, _ = integer_weight(name, layer)
    if not torch.equal(stored, rolled.to(torch.int64)):
        raise NotProven(
            f"layer '{name}' does not reproduce its solved integers in {layer.weight.dtype}; "
            "convert the model to float32 first."
        )


def _set_input_bits(
    name: str, layer: Layer, bits: int, arriving: Sequence[InputRange | None]
) -> None:
    proxy = layer.input_quant
    if not proxy.is_quant_enabled:
        known = [*arriving, getattr(layer.weight_quant, "input_range", None)]
        if any(input_range and input_range.bit_width == bits for input_range in known):
            return
        raise InvalidPlan(
            f"layer '{name}' takes its input from another layer's quantizer; give apply_plan the "
            "arguments of a forward, args=(x,), or leave the input bits out of this layer's plan."
        )
    quant = proxy.fused_activation_quant_proxy.tensor_quant
    if int(quant.msb_clamp_bit_width_impl()) == bits:
        return
    with torch.no_grad():
        write_bits(proxy, bits)
    if isinstance(layer.weight_quant, AccumulatorAwareWeightQuantProxy):
        layer.weight_quant.set_input_range(None)


def untie(model: nn.Module, layers: Mapping[str, Layer]) -> None:
    """Gives every layer its own weight and bias: a solved one must not overwrite another.

    Args:
        model: contains the layers, and whatever else shares their parameters.
        layers: those to be solved.
    """
    owners = Counter(
        id(parameter) for module in model.modules() for parameter in module._parameters.values()
    )
    for layer in layers.values():
        for kind in ("weight", "bias"):
            shared = getattr(layer, kind)
            if shared is not None and owners[id(shared)] > 1:
                # Not by setattr: Brevitas would then build the quantizer again.
                layer._parameters[kind] = nn.Parameter(shared.detach().clone())
