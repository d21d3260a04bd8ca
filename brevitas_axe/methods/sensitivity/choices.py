"""The choices that a model admits."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product

from torch import nn

from brevitas_axe.accumulator import one_sided_budgets
from brevitas_axe.errors import InvalidPlan
from brevitas_axe.formats import Format
from brevitas_axe.methods.sensitivity.twin import InputGrid, input_grids
from brevitas_axe.model.apply.activations import input_sources, tied_layers
from brevitas_axe.model.layers import find_layers, unroll_weight
from brevitas_axe.plan import Choices, LayerPrecision


def make_choices(
    model: nn.Module,
    args: tuple,
    kwargs: dict | None = None,
    *,
    weight: Iterable[Format | None] = (2, 3, 4, 6, 8),
    input: Iterable[Format | None] = (None,),
    accumulator: Iterable[int | None] = (None,),
    tile: Iterable[int | None] = (None,),
    exclude: tuple[str, ...] = (),
) -> Choices:
    """Every combination for every layer that a forward calls, with ties found in the model.

    Left out are duplicates (a tile of at least the whole dot product is the same as no tile) and
    accumulators that cannot store one input.

    Args:
        model: a calibrated Brevitas model; not modified.
        args: positional arguments of one forward; few samples are enough.
        kwargs: keyword arguments of that forward.
        weight: weight bits, or floating-point formats; None leaves what the model has.
        input: input bits or formats; None likewise.
        accumulator: accumulator bits P; None for no limit.
        tile: inputs per accumulator; None for whole dot products.
        exclude: names of layers to leave out.

    Raises:
        InvalidPlan: no combination is left for a layer.
    """
    layers = find_layers(model, exclude)
    inputs = list(input)
    grids = {bits: input_grids(model, args, kwargs or {}, bits, exclude) for bits in inputs}
    accumulators = list(accumulator)
    combinations = list(product(weight, inputs, accumulators, tile))
    found = {}
    for name in grids[inputs[0]]:
        columns = unroll_weight(layers[name], layers[name].weight).shape[2]
        options = [
            LayerPrecision(w, a, p, None if p is None or t is None or t >= columns else t)
            for w, a, p, t in combinations
            if _stores_an_input(p, grids[a][name])
        ]
        if not options:
            raise InvalidPlan(
                f"no accumulator among {sorted(p for p in accumulators if p)} can store one input "
                f"of layer '{name}'; offer wider accumulators or fewer input bits."
            )
        found[name] = tuple(dict.fromkeys(options))
    return Choices(found, tied_layers(input_sources(model, args, kwargs, exclude)))


def _stores_an_input(accumulator: int | None, grid: InputGrid | None) -> bool:
    if accumulator is None or grid is None:
        return True
    return any(one_sided_budgets(accumulator, grid.input_range.low, grid.input_range.high))
