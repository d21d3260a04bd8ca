"""Costs of choices as numbers, from cost models and a model's layers.

What a layer costs may depend on the activation quantizer behind it, whose bits are the input bits
of another layer: FINN turns it into thresholds. Such a cost depends on the choices of both layers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from torch import nn

from brevitas_axe.errors import InvalidPlan
from brevitas_axe.methods.allocate.problem import Quantity
from brevitas_axe.methods.allocate.products import Beside, present
from brevitas_axe.methods.cost import (
    CostModel,
    Folding,
    LayerShape,
    choose_folding,
    choose_foldings,
    layer_shapes,
)
from brevitas_axe.model.apply.activations import input_sources, varied
from brevitas_axe.model.quantizers.operands import with_extra
from brevitas_axe.model.running import Batch
from brevitas_axe.plan import Choices, LayerPrecision, Plan
from brevitas_axe.registry import method


def output_readers(
    model: nn.Module,
    args: tuple,
    kwargs: dict | None = None,
    exclude: tuple[str, ...] = (),
) -> dict[str, str]:
    """Layer → a layer that reads the output quantizer of the first.

    Found as `input_sources` finds its results: by changing the bits of each quantizer.

    Args:
        model: a calibrated Brevitas model; not modified.
        args: positional arguments of one forward.
        kwargs: keyword arguments of that forward.
        exclude: names of layers to leave out.
    """
    scratch = copy.deepcopy(model)
    sources = input_sources(scratch, args, kwargs, exclude)
    before = layer_shapes(scratch, args, kwargs, exclude)
    readers: dict[str, str] = {}
    for quantizer in varied(scratch):
        reader = next((name for name, found in sources.items() if quantizer in found), None)
        if reader is None:
            continue
        after = layer_shapes(scratch, args, kwargs, exclude)
        changed = (n for n in before if before[n].output_bits != after[n].output_bits)
        readers.update(dict.fromkeys(changed, reader))
    return readers


def check_shapes(choices: Choices, shapes: Mapping[str, LayerShape]) -> None:
    """Raises InvalidPlan where a layer of the choices has no shape."""
    missing = [name for name in choices.layers if name not in shapes]
    if missing:
        raise InvalidPlan(
            f"the choices name {', '.join(missing)}, but the quantized layers that the model calls "
            f"are {', '.join(shapes)}; leave the others out."
        )


def foldings_within(
    choices: Choices,
    shapes: Mapping[str, LayerShape],
    max_cycles: int,
    products: Sequence[Beside] = (),
) -> dict[str, Folding]:
    """The folding of every layer that takes at most `max_cycles` clock cycles per forward.

    Chosen for each layer's widest choice, whose words are the widest: bits change no cycles, so
    every other choice keeps the pace too.

    Args:
        choices: every one needs weight and input bits.
        shapes: of all layers of the choices, see `brevitas_axe.methods.cost.layer_shapes`.
        max_cycles: for every single layer; the slowest one sets the pace.
        products: of attention, which keep the pace as well.

    Raises:
        InvalidPlan: a layer has no shape, or bits that the estimate needs are missing.
        InvalidOption: no folding is that fast.
        UnsupportedLayer: FINN cannot build a layer.
    """
    check_shapes(choices, shapes)
    widest = Plan({name: max(options, key=_width) for name, options in choices.layers.items()})
    foldings = choose_foldings({name: shapes[name] for name in choices.layers}, widest, max_cycles)
    for each in products:
        bits = max(each.widths(widest[each.layer]), key=_width)
        foldings[each.shape.name] = choose_folding(each.shape, bits, max_cycles)
    return foldings


def _width(choice: LayerPrecision) -> tuple[float, ...]:
    """Sort key: weight bits, then input bits, then accumulator; None sorts as no limit."""
    return choice.weight_bits or 0, choice.input_bits or 0, choice.accumulator or np.inf


def cost_table(
    model: str | CostModel,
    choices: Choices,
    shapes: Mapping[str, LayerShape],
    readers: Mapping[str, str] | None = None,
    foldings: Mapping[str, Folding] | None = None,
    products: Sequence[Beside] = (),
) -> Quantity:
    """Cost of every choice, and of every pair of choices where the next layer's bits count.

    Costs add up over layers. Of `finn_cycles` that is not FINN's pace, which the slowest layer
    sets and bits do not change: bound that by `foldings_within`, not by a budget.

    Args:
        model: cost model, or its registered name, with options or without.
        choices: every one needs weight and input bits.
        shapes: of all layers of the choices, see `brevitas_axe.methods.cost.layer_shapes`.
        readers: see `output_readers`; None keeps the output bits of the shapes.
        foldings: layer or product → parallel hardware, for costs that estimate it.
        products: of attention, which count with the choices of one layer each.

    Raises:
        InvalidPlan: a layer has no shape, or bits that the cost needs are missing.
    """
    price = method("cost", model)
    check_shapes(choices, shapes)
    names = list(choices.layers)
    single: list[np.ndarray] = []
    pairs: dict[tuple[int, int], np.ndarray] = {}
    for i, (name, options) in enumerate(choices.layers.items()):
        folding = (foldings or {}).get(name, Folding())
        reader = (readers or {}).get(name)
        if reader not in names:
            single.append(np.array([price(shapes[name], c, folding) for c in options], float))
            continue
        behind = [_bits_behind(shapes[name], d.input_bits) for d in choices.layers[reader]]
        widths = list(dict.fromkeys(behind))
        shaped = [replace(shapes[name], output_bits=bits) for bits in widths]
        table = np.array([[price(s, c, folding) for s in shaped] for c in options], float)
        table = table[:, [widths.index(bits) for bits in behind]]
        j = names.index(reader)
        if i == j:
            single.append(table.diagonal().copy())
        elif (table == table[:, :1]).all():
            single.append(table[:, 0].copy())
        else:
            single.append(np.zeros(len(options)))
            pair, table = ((i, j), table) if i < j else ((j, i), table.T)
            pairs[pair] = pairs[pair] + table if pair in pairs else table
    for each in products:
        folding = (foldings or {}).get(each.shape.name, Folding())
        costs = [each.cost(price, choice, folding) for choice in choices.layers[each.layer]]
        single[names.index(each.layer)] += np.array(costs, float)
    return Quantity(tuple(single), pairs)


def cost_tables(
    prices: Mapping[str, str | CostModel],
    choices: Choices,
    model: nn.Module,
    call: Batch,
    exclude: tuple[str, ...] = (),
    *,
    max_cycles: int | None = None,
    following: Sequence[Beside] = (),
) -> tuple[dict[str, Quantity], dict[str, Folding] | None]:
    """The table of every cost, with all that they count beside the choices.

    Args:
        prices: name of a cost → its model, or the registered name.
        choices: every one needs weight and input bits.
        model: a calibrated Brevitas model; not modified.
        call: arguments of one forward, of one sample for costs per sample.
        exclude: names of layers to leave out.
        max_cycles: see `foldings_within`; None for one multiplication at a time.
        following: attention products that the model will have; those that it has are found.

    Returns:
        Name → table, and the foldings, None without `max_cycles`.
    """
    args, kwargs = call
    shapes = layer_shapes(model, args, kwargs, exclude)
    products = (*following, *present(model, call, choices.layers, exclude))
    foldings = None
    if max_cycles is not None:
        foldings = foldings_within(choices, shapes, max_cycles, products)
    readers = output_readers(model, args, kwargs, exclude)
    hardware = (shapes, readers, foldings, products)
    return {n: cost_table(price, choices, *hardware) for n, price in prices.items()}, foldings


def _bits_behind(shape: LayerShape, planned: int | None) -> int | None:
    """Bits of the quantizer behind a layer, where the layer that reads it has these input bits."""
    return shape.output_bits if planned is None else with_extra(planned, shape.output_extra)
