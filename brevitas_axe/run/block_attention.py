"""Attention products of one block: quantized, and their bits divided between both operands.

A product of two activations has no weights to keep within a budget. K products of integers up to a
and b in magnitude fit P bits where K·a·b ≤ 2^(P-1)-1, so the bits of both operands are what the
accumulator leaves. Which operand gets more is tried on the calibration data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import Tensor

from brevitas_axe.accumulator import accumulator_limit
from brevitas_axe.errors import AccumulatorTooNarrow, UnsupportedLayer
from brevitas_axe.model.attention_products import (
    AttentionProducts,
    find_attention,
    put_products,
    set_product_bits,
)
from brevitas_axe.model.devices import building_for
from brevitas_axe.model.stack import Alone, Call
from brevitas_axe.plan import LayerPrecision, Plan

Pairs = Mapping[str, tuple[tuple[int, int], ...]]
_LEAST_BITS = 2


class BlockAttention:
    """The attention products of one float block.

    Args:
        alone: the block; products are put into it.
        calls: inputs of the block, quantized and float, batch by batch.
        plan: of the block's layers, whose narrowest accumulator and widest inputs count.

    Raises:
        UnsupportedLayer: the block does not call torch's attention function.
        AccumulatorTooNarrow: no two operands of 2 bits fit.
    """

    def __init__(self, alone: Alone, calls: Sequence[tuple[Call, Call]], plan: Plan) -> None:
        self._alone, self._calls = alone, calls
        widths = plan.layers.values()
        limit = min((p.accumulator for p in widths if p.accumulator is not None), default=None)
        most = max(p.input_bits or 0 for p in widths)
        found = find_attention(alone, lambda: [alone(*pair) for pair in calls])
        if not found:
            raise UnsupportedLayer(
                f"block '{alone.name}' does not compute attention by torch's "
                "scaled_dot_product_attention, so its products cannot be quantized; load the model "
                "with attn_implementation='sdpa', or set the recipe's attention to float."
            )
        self._products: dict[str, AttentionProducts] = {}
        self._pairs: dict[str, Pairs] = {}
        for name, call in found.items():
            self._pairs[name] = {
                product: _pairs(f"{name}, {product}", getattr(call, product), most, limit, signed)
                for product, signed in (("scores", True), ("context", False))
            }
        for name in found:
            with building_for(alone):
                self._products[name] = AttentionProducts(most, limit)
            put_products(alone.get_submodule(name), self._products[name].eval())

    def widths(self) -> list[LayerPrecision]:
        """All widths that an operand may get, as inputs for which ranges are to be fitted."""
        every = [pair for pairs in self._pairs.values() for each in pairs.values() for pair in each]
        return [LayerPrecision(input=bits) for bits in {bits for pair in every for bits in pair}]

    def choose(self, outputs: Sequence[Tensor]) -> None:
        """Divides the bits by the error of the block's output, all else in float.

        Args:
            outputs: of the float block, batch by batch.
        """
        with self._alone_quantized():
            for name, products in self._products.items():
                for product, pairs in self._pairs[name].items():
                    self._set_best(products, product, pairs, lambda: self._error(outputs))

    @staticmethod
    def _set_best(
        products: AttentionProducts,
        product: str,
        pairs: tuple[tuple[int, int], ...],
        error: Callable[[], float],
    ) -> None:
        best, least = pairs[-1], math.inf
        for pair in pairs if len(pairs) > 1 else ():
            set_product_bits(products, product, pair)
            found = error()
            if found < least:
                best, least = pair, found
        set_product_bits(products, product, best)

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


def _pairs(
    name: str, length: int, most: int, accumulator: int | None, signed: bool
) -> tuple[tuple[int, int], ...]:
    """Bits of the left and the right operand of which neither could have more.

    Args:
        name: of the product, for errors.
        length: K.
        most: bits of either at most.
        accumulator: P, or None for no limit.
        signed: whether the left operand is, as the right one always is.
    """
    if accumulator is None:
        return ((most, most),)
    room = accumulator_limit(accumulator) // length
    found: list[tuple[int, int]] = []
    for left in range(most, _LEAST_BITS - 1, -1):
        largest = 2 ** (left - 1) if signed else 2**left - 1
        fits = [b for b in range(_LEAST_BITS, most + 1) if largest * 2 ** (b - 1) <= room]
        if fits and (not found or fits[-1] > found[-1][1]):
            found.append((left, fits[-1]))
    if not found:
        raise AccumulatorTooNarrow(
            f"the attention product '{name}' adds {length} products, and not even operands of "
            f"{_LEAST_BITS} bits fit an accumulator of {accumulator}; give it a wider one, or set "
            "the recipe's attention to float."
        )
    return tuple(found)
