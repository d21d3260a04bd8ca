"""Finds the activation quantizers in front of layers, and sets their bits.

A quantizer belongs to a layer's input if changing its bits changes that input. This is found by
trying, one forward per quantizer, so that it works for any model, traceable or not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce

import torch
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from torch import nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.formats import Format, is_format
from brevitas_axe.model.apply.minifloats import give_inputs
from brevitas_axe.model.apply.ranges import current_bits, write_bits
from brevitas_axe.model.layers import Layer, Proxy, find_layers
from brevitas_axe.model.prepare import Batch, one_sample
from brevitas_axe.model.running import observe_inputs
from brevitas_axe.plan import Plan

Ranges = Mapping[str, list[InputRange | None]]


def activation_quantizers(model: nn.Module) -> dict[str, list[Proxy]]:
    """Enabled integer activation quantizers by name of the first.

    Those that share a parameter, as residual branches share their scale, are in one list.
    """
    found: dict[str, list[Proxy]] = {}
    owner: dict[int, str] = {}
    for name, module in model.named_modules():
        if not isinstance(module, ActQuantProxyFromInjectorBase) or not module.is_quant_enabled:
            continue
        proxy: Proxy = module
        if not hasattr(proxy.fused_activation_quant_proxy.tensor_quant, "msb_clamp_bit_width_impl"):
            continue  # a floating-point format
        parameters = [id(parameter) for parameter in proxy.parameters()]
        first = next((owner[p] for p in parameters if p in owner), name)
        owner.update(dict.fromkeys(parameters, first))
        found.setdefault(first, []).append(proxy)
    return found


@torch.no_grad()
def set_bits(proxies: Iterable[Proxy], bits: int) -> None:
    """Sets the bits of activation quantizers; the scale follows.

    The range stays, unless `fit_ranges` fitted one for these bits.
    """
    for proxy in proxies:
        write_bits(proxy, bits)


def varied(model: nn.Module) -> Iterator[str]:
    """Name of every activation quantizer in turn, while its bits are changed."""
    for quantizer, proxies in activation_quantizers(model).items():
        bits = current_bits(proxies[0])
        set_bits(proxies, bits + 1 if bits < 16 else bits - 1)
        yield quantizer
        set_bits(proxies, bits)


def input_sources(
    model: nn.Module, args: tuple, kwargs: dict | None = None, exclude: tuple[str, ...] = ()
) -> dict[str, tuple[str, ...]]:
    """Names of the quantizers whose bits decide those of each layer's input.

    Args:
        model: a calibrated Brevitas model; not modified.
        args: positional arguments of one forward.
        kwargs: keyword arguments of that forward.
        exclude: names of layers to leave out.

    Returns:
        Layer name → quantizer names. Layers that the forward does not call are left out.
    """
    scratch = copy.deepcopy(model)
    layers = find_layers(scratch, exclude, tile_scales=True)
    before = observe_inputs(scratch, layers, args, kwargs)
    args, kwargs = _smallest_batch(scratch, layers, before, (args, kwargs or {}))
    sources: dict[str, list[str]] = {name: [] for name in before}
    for quantizer in varied(scratch):
        after = observe_inputs(scratch, layers, args, kwargs)
        for name, ranges in before.items():
            if after.get(name) != ranges:
                sources[name].append(quantizer)
    return {name: tuple(found) for name, found in sources.items()}


def _smallest_batch(
    model: nn.Module, layers: dict[str, Layer], seen: Ranges, batch: Batch
) -> Batch:
    """The first sample if every layer's input range is the same as with the batch, else all."""
    few = one_sample(batch)
    try:
        same = observe_inputs(model, layers, *few) == seen
    except Exception:  # a forward may require its batch size, with any error
        return batch
    return few if same else batch


def tied_layers(sources: Mapping[str, tuple[str, ...]]) -> tuple[tuple[str, ...], ...]:
    """Groups of two or more layers that share a quantizer, directly or through each other."""
    groups: list[tuple[set[str], set[str]]] = []
    for name, quantizers in sources.items():
        joined, used = {name}, set(quantizers)
        apart = []
        for group in groups:
            if group[1] & used:
                joined, used = joined | group[0], used | group[1]
            else:
                apart.append(group)
        groups = [*apart, (joined, used)]
    order = list(sources)
    return tuple(tuple(sorted(names, key=order.index)) for names, _ in groups if len(names) > 1)


def set_input_bits(
    model: nn.Module,
    plan: Plan,
    args: tuple,
    kwargs: dict | None = None,
    exclude: tuple[str, ...] = (),
) -> None:
    """Gives the quantizers that feed the planned layers the planned input bits, in place.

    Those that are planned in a floating-point format are replaced.

    Raises:
        InvalidPlan: two layers want different bits of one quantizer, or a layer's input does not
            get the planned bits.
    """
    layers = find_layers(model, exclude, tile_scales=True)
    plan.check_names(layers)
    plan = _without_codes(layers, plan)
    if _arrive(plan, observe_inputs(model, layers, args, kwargs)):
        return  # saves a forward per quantizer
    proxies = activation_quantizers(model)
    wanted: dict[str, tuple[Format, str]] = {}
    for name, quantizers in input_sources(model, args, kwargs, exclude).items():
        bits = plan.layers[name].input if name in plan.layers else None
        if bits is None:
            continue
        for quantizer in quantizers:
            known, other = wanted.setdefault(quantizer, (bits, name))
            if known != bits:
                raise InvalidPlan(
                    f"layers '{other}' and '{name}' read the same activation but are planned with "
                    f"{known} and {bits} input bits; give both the same."
                )
    for quantizer, (bits, _) in wanted.items():
        if isinstance(bits, str):
            give_inputs(model, proxies[quantizer], bits)
        else:
            set_bits(proxies[quantizer], bits)
    for layer in layers.values():
        if hasattr(layer.weight_quant, "set_input_range"):
            layer.weight_quant.set_input_range(None)
    for name, input_range in _widest(observe_inputs(model, layers, args, kwargs)).items():
        bits = plan.layers[name].input if name in plan.layers else None
        check_arriving(name, bits, input_range)


def code_bits(layer: Layer) -> int | None:
    """Bits of a layer's own input quantizer whose integers may need more than its code has.

    None where the bits of the integers are those of the quantizer, as usual.
    """
    proxy = layer.input_quant
    if not proxy.is_quant_enabled or getattr(proxy, "integer_range", None) is None:
        return None
    return current_bits(proxy)


def _without_codes(layers: Mapping[str, Layer], plan: Plan) -> Plan:
    """Sets the planned bits of quantizers that have a code; the plan of all other layers."""
    others = {}
    for name, precision in plan.layers.items():
        bits = code_bits(layers[name])
        if bits is None:
            others[name] = precision
        elif isinstance(wanted := precision.input, str):
            precision.check_integers(name, "its input quantizer gives")
        elif wanted not in (None, bits):
            set_bits([layers[name].input_quant], wanted)
            if hasattr(layers[name].weight_quant, "set_input_range"):
                layers[name].weight_quant.set_input_range(None)
    return Plan(others)


def _arrive(plan: Plan, seen: Ranges) -> bool:
    """Whether every planned layer that a forward calls gets its planned input bits already."""
    widest = _widest(seen)
    return all(
        p.input is None or name not in widest or is_format(widest[name], p.input)
        for name, p in plan.layers.items()
    )


def check_arriving(name: str, bits: Format | None, arrives: InputRange | None) -> None:
    """Raises InvalidPlan when a layer's input does not have the bits that it should have.

    Args:
        name: layer name.
        bits: its planned input bits, or their floating-point format; None for any.
        arrives: integers of the input; None where it is not quantized.
    """
    if bits is None or is_format(arrives, bits):
        return
    what = "a float input" if arrives is None else f"an input of {arrives.bit_width} bits"
    given = f"{bits} input bits" if isinstance(bits, int) else f"inputs in {bits}"
    raise InvalidPlan(
        f"layer '{name}' is given {given}, but with these set {what} arrives; "
        "quantize its input directly in front of it."
    )


def _widest(calls: Ranges) -> dict[str, InputRange | None]:
    """Union of each layer's ranges, None where an input was not quantized."""
    return {
        name: None if None in ranges else reduce(InputRange.union, [r for r in ranges if r])
        for name, ranges in calls.items()
    }
