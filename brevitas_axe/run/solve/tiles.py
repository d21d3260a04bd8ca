"""One tile size for a whole model, layer by layer."""

from __future__ import annotations

from brevitas_axe.errors import InvalidTile
from brevitas_axe.model.layers import Layer, unroll_weight
from brevitas_axe.plan import LayerPrecision


def fitted_tile(
    name: str, layer: Layer, precision: LayerPrecision, shared_by_all: bool
) -> LayerPrecision:
    """The precision of a layer, with its tile fitted to its inputs and its weight scales.

    Args:
        name: of the layer, for messages.
        layer: to be solved.
        precision: what was requested.
        shared_by_all: the tile size was given for all layers: those with fewer inputs take a
            single tile.

    Raises:
        InvalidTile: the layer has one weight scale per tile of another size.
    """
    columns = unroll_weight(layer, layer.weight).shape[2]
    shared = getattr(layer.weight_quant, "scale_tile", None) or columns
    bound = precision.accumulator is not None
    if bound and shared < columns and precision.tile != shared:
        raise InvalidTile(
            f"layer '{name}' has one weight scale per {shared} inputs, and an accumulator adds "
            f"numbers of one scale only; give it tiles of {shared}."
        )
    if shared_by_all and precision.tile and precision.tile >= columns:
        return LayerPrecision(accumulator=precision.accumulator)
    return precision
