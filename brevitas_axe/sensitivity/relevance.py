"""Layer-wise relevance propagation as a backward pass.

Inside `propagating`, autograd carries relevance instead of gradients: linear layers and
convolutions redistribute it by the α=1, β=0 rule, over (w⁺, x⁺) and (w⁻, x⁻); biases take none.
Activations, normalisations and softmax pass it on; a sum splits it by |share|; of a product of two
activations each gets half. Shapes, pooling and indexing need nothing: there the gradient of the
operation already carries relevance to where it belongs.

LRP-QViT (arXiv 2401.11243), after Bach et al. (PLoS ONE 2015).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TINY = 1e-12


class _Ruled(torch.autograd.Function):
    """The output of an operation, with a rule of its own for the way back."""

    @staticmethod
    def forward(ctx: Any, rule: Callable[[Tensor], tuple], output: Tensor, *inputs: Tensor):
        ctx.rule = rule
        return output.clone()

    @staticmethod
    def backward(ctx: Any, relevance: Tensor):
        return None, None, *ctx.rule(relevance)


def _ruled(rule: Callable[[Tensor], tuple], output: Tensor, *inputs: Tensor) -> Tensor:
    return _Ruled.apply(rule, output.detach(), *inputs)


def _positive_flow(x: Tensor, weight: Tensor, product: Callable[[Tensor, Tensor], Tensor]):
    """Rule that gives each input its share of the positive terms of every sum."""
    x, weight = x.detach(), weight.detach()
    halves = [(x.clamp(min=0), weight.clamp(min=0)), (x.clamp(max=0), weight.clamp(max=0))]

    def rule(relevance: Tensor) -> tuple[Tensor]:
        with torch.enable_grad():
            leaves = [value.clone().requires_grad_(True) for value, _ in halves]
            terms = [product(leaf, w) for leaf, (_, w) in zip(leaves, halves, strict=True)]
            total = terms[0] + terms[1]
            # Nothing flows through a sum without positive terms.
            share = torch.where(total > _TINY, relevance / total.clamp(min=_TINY), 0.0)
            slopes = torch.autograd.grad(total, leaves, share.detach())
        return (leaves[0].detach() * slopes[0] + leaves[1].detach() * slopes[1],)

    return rule


def _shrunk(relevance: Tensor, like: Tensor) -> Tensor:
    """Undoes broadcasting."""
    return relevance.sum_to_size(like.shape) if relevance.shape != like.shape else relevance


def _sum(first: Tensor, second: Tensor, output: Tensor) -> Tensor:
    a, b = first.detach().abs(), second.detach().abs()
    total = a + b
    share = torch.where(total > _TINY, a / total.clamp(min=_TINY), torch.full_like(total, 0.5))

    def rule(relevance: Tensor) -> tuple[Tensor, Tensor]:
        return _shrunk(relevance * share, first), _shrunk(relevance * (1 - share), second)

    return _ruled(rule, output, first, second)


def _product(first: Tensor, second: Tensor, multiply: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Half to each factor, shared out by |terms| of the sums that the product makes."""
    a, b = first.detach(), second.detach()

    def rule(relevance: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            left, right = a.abs().requires_grad_(True), b.abs().requires_grad_(True)
            total = multiply(left, right)
            share = torch.where(total > _TINY, relevance / total.clamp(min=_TINY), 0.0)
            slopes = torch.autograd.grad(total, (left, right), share.detach() / 2)
        return (left * slopes[0]).detach(), (right * slopes[1]).detach()

    return _ruled(rule, multiply(a, b), first, second)


def _passed(x: Tensor, output: Tensor) -> Tensor:
    return _ruled(lambda relevance: (relevance,), output, x)


_LINEAR = {
    F.linear,
    torch.conv1d,
    torch.conv2d,
    torch.conv3d,
    F.conv1d,
    F.conv2d,
    F.conv3d,
    F.conv_transpose1d,
    F.conv_transpose2d,
    F.conv_transpose3d,
}
_PASSED = {
    F.relu, F.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_, F.relu6, F.leaky_relu,
    F.gelu, F.silu, F.elu, F.hardtanh, torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh,
    F.softmax, torch.softmax, Tensor.softmax, F.layer_norm, F.batch_norm, F.group_norm,
    F.instance_norm, F.dropout,
}  # fmt: skip
_ADDED = {torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__}
_MULTIPLIED = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__}
_MATRIX = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_DIVIDED = {torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_}


class propagating(TorchFunctionMode):
    """Inside, the backward pass carries relevance.

    Scaled dot-product attention is computed step by step.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return output
        tensors = [a for a in args[:2] if isinstance(a, Tensor)]
        if func in _LINEAR:
            x = args[0] if args else kwargs["input"]
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            rest = args[3:]
            named = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}

            def product(value: Tensor, w: Tensor) -> Tensor:
                return func(value, w, None, *rest, **named)

            return _ruled(_positive_flow(x, weight, product), output, x)
        if func in _PASSED:
            return _passed(args[0] if args else kwargs["input"], output)
        if func in _ADDED and len(tensors) == 2:
            return _sum(tensors[0], tensors[1], output)
        if func in _MATRIX and len(tensors) == 2:
            return _product(tensors[0], tensors[1], torch.matmul)
        if func in _MULTIPLIED and len(tensors) == 2:
            if tensors[0].requires_grad and tensors[1].requires_grad:
                return _product(tensors[0], tensors[1], torch.mul)
            tensors = [t for t in tensors if t.requires_grad]
        if func in _ADDED | _MULTIPLIED | _DIVIDED and tensors:
            like = tensors[0]
            return _ruled(lambda relevance: (_shrunk(relevance, like),), output, like)
        return output

    def _attention(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **rest
    ) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = _product(query, key.mT, lambda a, b: a @ b * scale)
        mask = attn_mask
        if is_causal:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
        if mask is not None:
            hidden = scores.detach()
            hidden = (
                hidden.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else hidden + mask
            )
            scores = _passed(scores, hidden)
        weights = _passed(scores, scores.detach().softmax(-1))
        return _product(weights, value, torch.matmul)
