"""Attention whose two products multiply integers.

PyTorch computes attention by one function, `F.scaled_dot_product_attention`; so do the attention
interfaces of transformers ("sdpa", their default). Where a module calls it, an `AttentionProducts`
under that module answers instead: the same function with a quantizer on each of the four operands,
as `brevitas.nn.QuantScaledDotProductAttention` has them. Signed integers have their whole range, as
hardware counts it whatever numbers arrive.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from brevitas_axe.model.apply.activations import set_bits
from brevitas_axe.model.apply.ranges import current_bits
from brevitas_axe.model.attention_calls import (
    CHILD,
    CONTEXT,
    SCORES,
    Product,
    add_call,
)
from brevitas_axe.model.layers import Proxy
from brevitas_axe.model.running import Batch, hooked
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, certify

# Product → its operands, left and right.
PRODUCTS: Mapping[str, tuple[str, str]] = {
    SCORES: ("q_scaled_quant", "k_transposed_quant"),
    CONTEXT: ("attn_output_weights_quant", "v_quant"),
}
_SIGNED: Any = Int8ActPerTensorFloat
_UNSIGNED: Any = Uint8ActPerTensorFloat


class AttentionProducts(nn.Module):
    """softmax(q kᵀ · scale + mask) v with integers on both sides of both products.

    Without its quantizers it is `F.scaled_dot_product_attention`, whose arguments it takes.

    Args:
        bits: of all four operands at first; `set_product_widths` changes them.

    Attributes:
        accumulators: "scores" and "context" → P that the product must fit; None for no limit.
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        signed = _SIGNED.let(bit_width=bits)
        self.accumulators: dict[str, int | None] = dict.fromkeys(PRODUCTS)
        self.q_scaled_quant = qnn.QuantIdentity(signed)
        self.k_transposed_quant = qnn.QuantIdentity(signed)
        self.attn_output_weights_quant = qnn.QuantIdentity(_UNSIGNED.let(bit_width=bits))
        self.v_quant = qnn.QuantIdentity(signed)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """Attention of queries [..., H, L, E] to keys [..., H, S, E] and values [..., H, S, V]."""
        factor = query.size(-1) ** -0.5 if scale is None else scale
        if enable_gqa:
            key = key.repeat_interleave(query.size(-3) // key.size(-3), -3)
            value = value.repeat_interleave(query.size(-3) // value.size(-3), -3)
        queries = self.q_scaled_quant(query * factor)
        scores = queries @ self.k_transposed_quant(key.transpose(-2, -1))
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=key.device).tril()
        if attn_mask is None:
            weights = scores.softmax(-1)
        elif attn_mask.dtype == torch.bool:
            weights = scores.masked_fill(~attn_mask, -torch.inf).softmax(-1)
            weights = weights.masked_fill(~attn_mask, 0)  # rows of no key would be NaN
        else:
            weights = (scores + attn_mask).softmax(-1)
        if dropout_p:
            weights = torch.dropout(weights, dropout_p, train=True)
        return self.attn_output_weights_quant(weights) @ self.v_quant(value)

    def proxies(self, product: str) -> tuple[Proxy, Proxy]:
        """The quantizers of the left and right operand of "scores" or "context"."""
        left, right = (getattr(self, name).act_quant for name in PRODUCTS[product])
        return left, right

    def start(self, module: nn.Module, _args: tuple) -> None:
        """Hook in front of the module that computes attention."""
        if module._modules.get(CHILD) is self:
            _Answering(self).__enter__()

    def stop(self, module: nn.Module, _args: tuple, _output: object) -> None:
        """Hook behind it, also where it fails."""
        if module._modules.get(CHILD) is self:
            _Answering(self).__exit__(None, None, None)


class _Answering(TorchFunctionMode):
    """Context in which quantized products answer calls of torch's attention function."""

    def __init__(self, products: AttentionProducts) -> None:
        super().__init__()
        self._products = products

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        asked = func is F.scaled_dot_product_attention
        return (self._products if asked else func)(*args, **(kwargs or {}))


def put_products(owner: nn.Module, products: AttentionProducts) -> None:
    """Lets products answer the attention calls of a module, in place."""
    owner.add_module(CHILD, products)
    _connect(owner, products)


def connected(model: nn.Module) -> nn.Module:
    """The model, whose attention products answer again: a saved structure has no hooks."""
    for module in list(model.modules()):
        products = module._modules.get(CHILD)
        if isinstance(products, AttentionProducts):
            _connect(module, products)
    return model


def _connect(owner: nn.Module, products: AttentionProducts) -> None:
    for hooks in (owner._forward_pre_hooks, owner._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), AttentionProducts):
                del hooks[key]
    owner.register_forward_pre_hook(products.start)
    owner.register_forward_hook(products.stop, always_call=True)


def attention_products(model: nn.Module) -> dict[str, AttentionProducts]:
    """All of a model, by name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, AttentionProducts)}


@contextmanager
def noting_products(model: nn.Module) -> Iterator[dict[str, Product]]:
    """Context whose forwards note the products that they compute in integers, by name.

    Args:
        model: with attention products or without.
    """
    found: dict[str, dict[str, Product]] = {}
    noted: dict[str, Product] = {}

    def note(name: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        owner = name.removesuffix(CHILD).removesuffix(".")
        add_call(found, owner, args, kwargs)
        noted.update({product.name: product for product in found[owner].values()})

    with hooked(attention_products(model), before=note):
        yield noted


def set_product_widths(products: AttentionProducts, product: str, widths: LayerPrecision) -> None:
    """Sets the bits of the left operand (input) and the right one (weight), and the accumulator.

    A fitted range follows the bits.
    """
    left, right = products.proxies(product)
    for proxy, bits in ((left, widths.input_bits), (right, widths.weight_bits)):
        if bits is not None:
            set_bits([proxy], bits)
    products.accumulators[product] = widths.accumulator


def products_plan(model: nn.Module) -> Plan:
    """Widths of all attention products: left operand as input, right operand as weight."""
    return Plan(
        {
            f"{name}.{product}": LayerPrecision(
                *_bits(module, product), module.accumulators[product]
            )
            for name, module in attention_products(model).items()
            for product in PRODUCTS
        }
    )


def _bits(products: AttentionProducts, product: str) -> tuple[int, int]:
    left, right = map(current_bits, products.proxies(product))
    return right, left


def with_products(plan: Plan, model: nn.Module) -> Plan:
    """A plan with the attention products of a model, as a certificate takes it.

    Products that the plan names have its widths, all others their own.
    """
    return Plan({**products_plan(model).layers, **plan.layers})


def certified(model: nn.Module, plan: Plan, exclude: Iterable[str], call: Batch) -> Certificate:
    """The certificate of a model by a plan, of attention that it does not name by its own widths.

    Args:
        model: in memory.
        plan: of the layers.
        exclude: names to leave out of the verdict.
        call: arguments of one forward.
    """
    args, kwargs = call
    plan = with_products(plan, model)
    return certify(model, plan=plan, exclude=tuple(exclude), args=args, kwargs=kwargs)
