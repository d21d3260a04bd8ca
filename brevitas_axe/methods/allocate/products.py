"""What attention products cost beside the choices of layers.

An allocator chooses for layers alone. The bits of a product follow from those of one layer, so its
cost is added to the cost of that layer's choices. Which of both operands gets more bits is found on
data later; here the dearest division counts, so that a budget holds whichever is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from brevitas_axe.errors import AccumulatorTooNarrow
from brevitas_axe.methods.cost import CostModel, Folding, LayerShape
from brevitas_axe.methods.cost.shapes import product_shape
from brevitas_axe.model.attention_calls import Product
from brevitas_axe.model.attention_products import noting_products, products_plan
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.running import Batch
from brevitas_axe.plan import Choices, LayerPrecision


@dataclass(frozen=True)
class Beside:
    """An attention product, and the layer with whose choices it counts.

    Attributes:
        product: its sizes.
        layer: name, among those for which there are choices.
        kept: widths that it has whatever the layer gets; None where they follow.
    """

    product: Product
    layer: str
    kept: LayerPrecision | None = None

    @property
    def shape(self) -> LayerShape:
        return product_shape(self.product)

    def widths(self, choice: LayerPrecision) -> tuple[LayerPrecision, ...]:
        """Widths of the product of which a quantized model has one, for a choice of its layer.

        Raises:
            AccumulatorTooNarrow: there are none.
        """
        return self.product.operand_bits(choice) if self.kept is None else (self.kept,)

    def cost(self, price: CostModel, choice: LayerPrecision, folding: Folding) -> float:
        """The most that it may cost where its layer takes a choice."""
        return max(price(self.shape, widths, folding) for widths in self.widths(choice))


def following(
    found: Mapping[str, Mapping[str, Product]], choices: Choices
) -> tuple[tuple[Beside, ...], Choices]:
    """Products that will follow the choices of their layers, and the choices with which they can.

    Args:
        found: see `brevitas_axe.model.attention_calls.find_attention`.
        choices: of the layers.

    Raises:
        AccumulatorTooNarrow: a layer has none with which its product fits.
    """
    products = [p for mine in found.values() for p in mine.values()]
    beside = tuple(Beside(p, p.layer) for p in products if p.layer and p.layer in choices.layers)
    layers = dict(choices.layers)
    for each in beside:
        fitting = tuple(c for c in layers[each.layer] if _fits(each, c))
        if not fitting:
            each.widths(layers[each.layer][0])  # says why
        layers[each.layer] = fitting
    return beside, replace(choices, layers=layers)


def _fits(product: Beside, choice: LayerPrecision) -> bool:
    try:
        return bool(product.widths(choice))
    except AccumulatorTooNarrow:
        return False


@torch.no_grad()
def present(
    model: nn.Module, call: Batch, names: Iterable[str], exclude: tuple[str, ...]
) -> tuple[Beside, ...]:
    """Products that a quantized model has already, which keep their widths.

    Args:
        model: not modified.
        call: arguments of one forward.
        names: of the layers for which there are choices, with the first of which they count.
        exclude: names to leave out.
    """
    first, widths = next(iter(names), None), products_plan(model)
    if first is None or not widths.layers:  # no choices are refused where they are counted
        return ()
    args, kwargs = call
    with noting_products(model) as noted:
        model(*args, **kwargs)
    return tuple(
        Beside(product, first, widths[name])
        for name, product in noted.items()
        if not is_inside(name, exclude)
    )
