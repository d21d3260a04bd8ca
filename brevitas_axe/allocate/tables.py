"""Costs of choices as numbers, from cost models and a model's layers.

What a layer costs may depend on the activation quantizer behind it, whose bits are the input bits
of another layer: FINN turns it into thresholds. Such a cost is a matter of both layers' choices.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import nn

from brevitas_axe.allocate.problem import Quantity
from brevitas_axe.cost import CostModel, Folding, LayerShape, cost_model, layer_shapes
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.plan import Choices
from brevitas_axe.sensitivity.activations import input_sources, varied


def output_readers(
    model: nn.Module,
    args: tuple,
    kwargs: dict | None = None,
    exclude: tuple[str, ...] = (),
) -> dict[str, str]:
    """Layer → a layer whose input bits are those of the quantizer behind the first.

    Found as `input_sources` finds its: by changing the bits of each quantizer.

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


def cost_table(
    model: str | CostModel,
    choices: Choices,
    shapes: Mapping[str, LayerShape],
    readers: Mapping[str, str] | None = None,
    foldings: Mapping[str, Folding] | None = None,
) -> Quantity:
    """Cost of every choice, and of every pair of choices where the next layer's bits count.

    Args:
        model: cost model, or its registered name.
        choices: every one needs weight and input bits.
        shapes: of all layers of the choices, see `brevitas_axe.cost.layer_shapes`.
        readers: see `output_readers`; None keeps the output bits of the shapes.
        foldings: layer → parallel hardware, for costs that estimate it.

    Raises:
        InvalidPlan: a layer has no shape, or bits that the cost needs are missing.
    """
    price = cost_model(model) if isinstance(model, str) else model
    missing = [name for name in choices.layers if name not in shapes]
    if missing:
        raise InvalidPlan(f"there is no shape of the layers {', '.join(missing)}; they cost too.")
    names = list(choices.layers)
    single: list[np.ndarray] = []
    pairs: dict[tuple[int, int], np.ndarray] = {}
    for i, (name, options) in enumerate(choices.layers.items()):
        folding = (foldings or {}).get(name, Folding())
        reader = (readers or {}).get(name)
        if reader not in names:
            single.append(np.array([price(shapes[name], c, folding) for c in options], float))
            continue
        behind = [d.input or shapes[name].output_bits for d in choices.layers[reader]]
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
    return Quantity(tuple(single), pairs)
