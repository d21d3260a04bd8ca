"""Where a model multiplies two activations for attention, and how many bits both may have.

K products of integers up to a and b in magnitude fit P bits where K·a·b ≤ 2^(P-1)-1. There are no
weights to keep within a budget, so the bits of both operands are what the accumulator leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from brevitas_axe.accumulator import accumulator_limit
from brevitas_axe.errors import AccumulatorTooNarrow, InvalidPlan, UnsupportedLayer
from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.running import hooked
from brevitas_axe.plan import LayerPrecision, Plan

# Name of the module under the one that computes attention.
CHILD = "attention_products"
# Its two products: query · key and weights · value.
SCORES, CONTEXT = "scores", "context"
_LEAST_BITS = 2


@dataclass(frozen=True)
class Product:
    """One product of two activations.

    Attributes:
        name: of the module that computes attention, with `CHILD` and "scores" or "context" behind.
        inputs: terms K of one sum: the head size, or the number of keys.
        outputs: columns of the right operand: the number of keys, or the size of a value.
        vectors: rows of the left operand, of all samples, heads and calls.
        signed: whether the left operand is, as the right one always is.
        layer: the layer from whose widths those of the product follow; None where there is none.
    """

    name: str
    inputs: int
    outputs: int
    vectors: int
    signed: bool
    layer: str | None = None

    def operand_bits(
        self, layer: LayerPrecision, named: LayerPrecision | None = None
    ) -> tuple[LayerPrecision, ...]:
        """Widths of both operands of which neither could have more.

        Args:
            layer: widths of the product's layer. Neither operand has more bits than its inputs,
                and the accumulator is as wide.
            named: what a plan says of the product itself, which counts instead; None for nothing.

        Returns:
            The right operand as weight and the left one as input, the most bits of the left first.

        Raises:
            AccumulatorTooNarrow: no two operands of 2 bits fit.
        """
        named = named or LayerPrecision()
        most_left = named.input_bits or layer.input_bits or _LEAST_BITS
        most_right = named.weight_bits or layer.input_bits or _LEAST_BITS
        accumulator = named.accumulator or layer.accumulator
        if accumulator is None:
            return (LayerPrecision(most_right, most_left),)
        room = accumulator_limit(accumulator) // self.inputs
        found: list[tuple[int, int]] = []
        for left in range(most_left, _LEAST_BITS - 1, -1):
            largest = 2 ** (left - 1) if self.signed else 2**left - 1
            right = next((b for b in range(most_right, 1, -1) if largest * 2 ** (b - 1) <= room), 0)
            if right and (not found or right > found[-1][1]):
                found.append((left, right))
        if not found:
            raise AccumulatorTooNarrow(
                f"the attention product '{self.name}' adds {self.inputs} products, and not even "
                f"operands of {_LEAST_BITS} bits fit an accumulator of {accumulator}; give it a "
                "wider one, or set the recipe's attention to float."
            )
        return tuple(LayerPrecision(right, left, accumulator) for left, right in found)


def is_product(name: str) -> bool:
    """Whether a plan's name is that of an attention product."""
    parent, _, product = name.rpartition(".")
    return product in (SCORES, CONTEXT) and parent.rpartition(".")[2] == CHILD


def named_products(plan: Plan | None) -> Plan:
    """What a plan says of attention products.

    Raises:
        InvalidPlan: a format that is no integer, one bit, or a tile.
    """
    layers = {} if plan is None else plan.layers
    named = Plan({name: p for name, p in layers.items() if is_product(name)})
    named.check_integers("attention multiplies")
    for name, p in named.layers.items():
        if p.tile is not None or min(p.weight_bits or _LEAST_BITS, p.input_bits or _LEAST_BITS) < 2:
            raise InvalidPlan(
                f"the attention product '{name}' is added up in one accumulator, from operands of "
                f"{_LEAST_BITS} bits or more; leave out its tile, and give it more bits."
            )
    return named


def check_attention(products: Mapping[str, Any], where: str) -> None:
    """Raises UnsupportedLayer where no call of torch's attention function was found.

    Args:
        products: what was.
        where: the block or the model, for the message.
    """
    if not products:
        raise UnsupportedLayer(
            f"{where} does not compute attention by torch's scaled_dot_product_attention, so its "
            "products cannot be quantized; load the model with attn_implementation='sdpa', or set "
            "the recipe's attention to float."
        )


@torch.no_grad()
def find_attention(
    model: nn.Module,
    forward: Callable[[], Any],
    layers: Iterable[str] = (),
    blocks: tuple[str, ...] = (),
) -> dict[str, dict[str, Product]]:
    """Modules that call `F.scaled_dot_product_attention` themselves, and the products of each.

    The widths of a product follow from those of the layer that ran last before it, which computes
    the values as a rule; where none did, of the first one behind it.

    Args:
        model: not modified.
        forward: runs it, on every batch whose number of keys matters.
        layers: names of those that have widths.
        blocks: modules to one of which a product and its layer both belong; none for no such bond.

    Returns:
        Module name → "scores" and "context" → the product.
    """
    running: list[str] = []
    order: list[str] = []
    found: dict[str, dict[str, Product]] = {}
    places: dict[str, int] = {}
    planned = set(layers)

    def enter(name: str, *_: object) -> None:
        running.append(name)

    def leave(name: str, *_: object) -> None:
        running.pop()
        if name in planned:
            order.append(name)

    def note(args: tuple, kwargs: dict) -> None:
        if running:
            places.setdefault(running[-1], len(order))
            add_call(found, running[-1], args, kwargs)

    with hooked(dict(model.named_modules()), enter, leave), _Watching(note):
        forward()
    return {
        owner: {
            kind: replace(product, layer=_layer_of(owner, places[owner], order, blocks))
            for kind, product in products.items()
        }
        for owner, products in found.items()
    }


class _Watching(TorchFunctionMode):
    """Tells the arguments of every call of torch's attention function."""

    def __init__(self, note: Callable[[tuple, dict], None]) -> None:
        super().__init__()
        self._note = note

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._note(args, kwargs)
        return func(*args, **kwargs)


def add_call(
    found: dict[str, dict[str, Product]], owner: str, args: tuple, kwargs: Mapping[str, Any]
) -> None:
    """Notes a call of torch's attention function.

    Args:
        found: module → "scores" and "context" → the product.
        owner: the module that made the call.
        args, kwargs: begin with queries [..., L, E], keys [..., S, E] and values [..., S, V].
    """
    given = {**dict(zip(("query", "key", "value"), args, strict=False)), **kwargs}
    query, key, value = (given[name] for name in ("query", "key", "value"))
    rows, keys = query[..., 0].numel(), key.shape[-2]
    sizes = {SCORES: (query.shape[-1], keys), CONTEXT: (keys, value.shape[-1])}
    products = found.setdefault(owner, {})
    for kind, (inputs, outputs) in sizes.items():
        before = products.get(kind)
        products[kind] = Product(
            f"{owner}.{CHILD}.{kind}".removeprefix("."),
            max(inputs, before.inputs if before else 0),
            max(outputs, before.outputs if before else 0),
            rows + (before.vectors if before else 0),
            signed=kind == SCORES,
        )


def _layer_of(owner: str, place: int, order: list[str], blocks: tuple[str, ...]) -> str | None:
    """The layer of a product that ran behind so many layers."""
    around = tuple(block for block in blocks if is_inside(owner, (block,)))
    if blocks and not around:
        return None
    nearest = (*order[:place][::-1], *order[place:])
    return next((name for name in nearest if not blocks or is_inside(name, around)), None)
