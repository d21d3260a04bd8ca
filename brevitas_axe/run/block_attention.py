"""Attention products of one block: quantized, and their bits divided between both operands.

Which operand gets more of the bits that an accumulator leaves is tried on the calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.model.attention_calls import Product, check_attention, find_attention
from brevitas_axe.model.attention_products import (
    AttentionProducts,
    put_products,
    set_product_widths,
)
from brevitas_axe.model.devices import building_for
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.running import Batch, evaluating
from brevitas_axe.model.stack import Alone, Call, left_in_float
from brevitas_axe.plan import LayerPrecision, Plan

Widths = tuple[LayerPrecision, ...]


class BlockAttention:
    """The attention products of one float block.

    Args:
        alone: the block; products are put into it.
        calls: inputs of the block, quantized and float, batch by batch.
        plan: of the block's layers, from which the widths of its products follow.
        named: what a plan says of products, of this block or of others.

    Raises:
        UnsupportedLayer: the block does not call torch's attention function.
        AccumulatorTooNarrow: no two operands of 2 bits fit.
        InvalidPlan: it names a product that the block does not have.
    """

    def __init__(
        self,
        alone: Alone,
        calls: Sequence[tuple[Call, Call]],
        plan: Plan,
        named: Plan,
    ) -> None:
        self._alone, self._calls = alone, calls
        found = find_attention(alone, lambda: [alone(*pair) for pair in calls], plan.layers)
        check_attention(found, f"block '{alone.name}'")
        every = {p.name: p for mine in found.values() for p in mine.values()}
        own = {n: p for n, p in named.layers.items() if is_inside(n, (alone.name,))}
        Plan(own).check_names(every)
        self._products: dict[str, AttentionProducts] = {}
        self._widths: dict[str, Mapping[str, Widths]] = {}
        for owner, mine in found.items():
            self._widths[owner] = {
                kind: p.operand_bits(_following(p, plan), own.get(p.name))
                for kind, p in mine.items()
            }
        most = max(p.input_bits or 0 for p in plan.layers.values())
        for owner in found:
            with building_for(alone):
                self._products[owner] = AttentionProducts(most)
            put_products(alone.get_submodule(owner), self._products[owner].eval())

    def widths(self) -> list[LayerPrecision]:
        """All widths that an operand may get, as inputs for which ranges are to be fitted."""
        every = [w for mine in self._widths.values() for each in mine.values() for w in each]
        return [LayerPrecision(input=bits) for bits in {bits for w in every for bits in _bits(w)}]

    def choose(self, outputs: Sequence[Tensor]) -> None:
        """Divides the bits by the error of the block's output, all else in float.

        Args:
            outputs: of the float block, batch by batch.
        """
        with self._alone_quantized():
            for owner, products in self._products.items():
                for kind, widths in self._widths[owner].items():
                    self._set_best(products, kind, widths, lambda: self._error(outputs))

    @staticmethod
    def _set_best(
        products: AttentionProducts, kind: str, widths: Widths, error: Callable[[], float]
    ) -> None:
        best, least = widths[-1], math.inf
        for each in widths if len(widths) > 1 else ():
            set_product_widths(products, kind, each)
            found = error()
            if found < least:
                best, least = each, found
        set_product_widths(products, kind, best)

    @torch.no_grad()
    def _error(self, outputs: Sequence[Tensor]) -> float:
        """Squared error of the block's outputs."""
        pairs = zip(self._calls, outputs, strict=True)
        return sum(float((self._alone(*c) - o).double().square().sum()) for c, o in pairs)

    @contextmanager
    def _alone_quantized(self) -> Iterator[None]:
        """Context in which the products are the only quantized part of the block."""
        mine = {part for each in self._products.values() for part in each.modules()}
        others = [
            module
            for module in self._alone.modules()
            if isinstance(module, QuantProxyFromInjector) and module not in mine
        ]
        before = [proxy.disable_quant for proxy in others]
        for proxy in others:
            proxy.disable_quant = True
        try:
            yield
        finally:
            for proxy, state in zip(others, before, strict=True):
                proxy.disable_quant = state


def float_products(
    model: nn.Module, call: Batch, blocks: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, dict[str, Product]]:
    """The attention products of all blocks of a float model, for one sample, by module.

    Args:
        model: not modified.
        call: arguments of one forward.
        blocks: their names.
        exclude: names of layers that stay in float.

    Raises:
        UnsupportedLayer: no block calls torch's attention function.
    """
    args, kwargs = call
    layers = [name for name in left_in_float(model) if not is_inside(name, exclude)]
    with evaluating(model):
        found = find_attention(model, lambda: model(*args, **kwargs), layers, blocks)
    check_attention(found, type(model).__name__)
    return found


def _following(product: Product, plan: Plan) -> LayerPrecision:
    """Widths of the layer from which those of a product follow."""
    return LayerPrecision() if product.layer is None else plan[product.layer]


def _bits(widths: LayerPrecision) -> Iterator[int]:
    """Of both operands, where they are known."""
    return (bits for bits in (widths.weight_bits, widths.input_bits) if bits is not None)
