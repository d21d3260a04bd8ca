"""The two activation products of attention with quantizers in front of both."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from brevitas.nn import QuantMultiheadAttention
from torch import nn

from brevitas_axe.proof.certificate.escapes import is_known
from brevitas_axe.proof.certificate.proof import Found, Integers
from brevitas_axe.proof.certificate.tensors import InputFact, join, read_input
from brevitas_axe.proof.graph.grid import Unprovable

_PRODUCTS = {
    "scores": ("q_scaled_quant", "k_transposed_quant"),
    "context": ("attn_output_weights_quant", "v_quant"),
}


def has_products(module: nn.Module) -> bool:
    """Whether a module quantizes the four operands, and is of a class whose forward is known."""
    known = isinstance(module, QuantMultiheadAttention) or is_known(type(module))
    return known and all(hasattr(module, side) for sides in _PRODUCTS.values() for side in sides)


class Attention:
    """Records the operands of query·key ("scores") and weights·value ("context")."""

    def __init__(self, name: str, module: Any) -> None:
        self._name, self._module = name, module
        self._left: dict[str, InputFact | Unprovable] = {}
        self._calls: dict[str, list[Found]] = {product: [] for product in _PRODUCTS}

    def hooks(self) -> Iterator[Any]:
        """Hooks on the four quantizers in front of the products."""
        for product, (left, right) in _PRODUCTS.items():
            # On the proxies, because the layers around them pass on plain tensors.
            left, right = (getattr(self._module, side).act_quant for side in (left, right))
            yield left.register_forward_hook(self._keep(product), prepend=True)
            yield right.register_forward_hook(self._join(product), prepend=True)

    def found(self) -> Iterator[Found]:
        """One dot product for each of the two."""
        for product, calls in self._calls.items():
            unreached = Found(
                self._label(product), "bmm", reason="it was never computed with the given args"
            )
            yield join(calls or [unreached])

    def _label(self, product: str) -> str:
        return f"{self._name}.{product}" if self._name else product

    def _keep(self, product: str) -> Callable:
        def hook(module: nn.Module, _args: tuple, output: object) -> None:
            self._left[product] = _judge(module, output, None)

        return hook

    def _join(self, product: str) -> Callable:
        def hook(module: nn.Module, _args: tuple, output: object) -> None:
            # The product sums over axis 1 of the right operand, so its scale may not vary there.
            sides = (self._left[product], _judge(module, output, 1))
            self._calls[product].append(_found(self._label(product), *sides))

        return hook


def _judge(proxy: nn.Module, output: object, axis: int | None) -> InputFact | Unprovable:
    try:
        return read_input(output, axis, exact=bool(proxy.is_quant_enabled))
    except Unprovable as reason:
        return reason


def _found(name: str, left: InputFact | Unprovable, right: InputFact | Unprovable) -> Found:
    if isinstance(left, Unprovable) or isinstance(right, Unprovable):
        return Found(name, "bmm", reason=str(left if isinstance(left, Unprovable) else right))
    if left.scale.size > 1 or right.scale.size > 1 or not np.isfinite(right.scale):
        return Found(name, "bmm", reason="its inputs have a scale per channel")
    corners = [x * y for x in (left.low, left.high) for y in (right.low, right.high)]
    note = f"its length is {left.length}, as with the given args"
    return Found(
        name,
        "bmm",
        integers=Integers(np.ones((1, left.length), np.int64), min(*corners, 0), max(*corners, 0)),
        weight_type=right.type,
        input_type=left.type,
        assumptions=tuple(dict.fromkeys((*left.assumptions, *right.assumptions, note))),
    )
