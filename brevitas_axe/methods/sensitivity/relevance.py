"""Layer-wise relevance propagation as a backward pass.

Inside `propagating`, autograd carries relevance instead of gradients: linear layers and
convolutions redistribute it by the α=1, β=0 rule, over (w⁺, x⁺) and (w⁻, x⁻); biases take none.
Activations, normalisations and softmax pass it on; a sum or difference splits it by |share|; of a
product of two activations each gets half, but a reciprocal root, as norms have it, gets none.
Shapes, pooling and indexing need nothing: there the gradient of the operation already carries
relevance to where it belongs. Operations without a rule do the same, and do not conserve it.

LRP-QViT (arXiv 2401.11243), after Bach et al. (PLoS ONE 2015).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
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
            # A sum without positive terms passes on no relevance.
            share = torch.where(total > _TINY, relevance / total.clamp(min=_TINY), 0.0)
            slopes = torch.autograd.grad(total, leaves, share.detach())
        return (leaves[0].detach() * slopes[0] + leaves[1].detach() * slopes[1],)

    return rule


def _shrunk(relevance: Tensor, like: Tensor) -> Tensor:
    """Undoes broadcasting."""
    return relevance.sum_to_size(like.shape) if relevance.shape != like.shape else relevance


def _over(relevance: Tensor, total: Tensor) -> Tensor:
    """Relevance divided by signed totals; none where these vanish."""
    small = total.abs() <= _TINY
    return torch.where(small, 0.0, relevance / torch.where(small, 1.0, total))


def _signed_sum(first: Tensor, second: Tensor, output: Tensor) -> Tensor:
    """The authors' rule: shares with their signs, then a total for each of the two, per sample."""
    values = [first.detach().expand_as(output), second.detach().expand_as(output)]

    def rule(relevance: Tensor) -> tuple[Tensor, ...]:
        per_sample = tuple(range(1, relevance.ndim))
        share = _over(relevance, values[0] + values[1])
        parts = [value * share for value in values]
        # The sum over no axis would be one over all.
        totals = [part.sum(per_sample, keepdim=True) if per_sample else part for part in parts]
        given = relevance.sum(per_sample, keepdim=True) if per_sample else relevance
        whole = totals[0].abs() + totals[1].abs()
        return tuple(
            _shrunk(part * _over(_over(total.abs(), whole) * given, total), like)
            for part, total, like in zip(parts, totals, (first, second), strict=True)
        )

    return _ruled(rule, output, first, second)


def _signed_product(factors: Sequence[Tensor], multiply: Callable[..., Tensor]) -> Tensor:
    """The authors' rule: half to each factor, in proportion to the terms with their signs."""
    values = [factor.detach() for factor in factors]

    def rule(relevance: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            leaves = [value.clone().requires_grad_(True) for value in values]
            total = multiply(*leaves)
            share = _over(relevance, total.detach()) / len(leaves)
            slopes = torch.autograd.grad(total, leaves, share)
        return tuple((leaf * slope).detach() for leaf, slope in zip(leaves, slopes, strict=True))

    return _ruled(rule, multiply(*values), *factors)


def _sum(first: Tensor, second: Tensor, output: Tensor) -> Tensor:
    a, b = first.detach().abs(), second.detach().abs()
    total = a + b
    share = torch.where(total > _TINY, a / total.clamp(min=_TINY), torch.full_like(total, 0.5))

    def rule(relevance: Tensor) -> tuple[Tensor, Tensor]:
        return _shrunk(relevance * share, first), _shrunk(relevance * (1 - share), second)

    return _ruled(rule, output, first, second)


def _product(factors: Sequence[Tensor], multiply: Callable[..., Tensor]) -> Tensor:
    """Half to each factor; within a factor, in proportion to the |terms| of the sums it enters."""
    values = [factor.detach() for factor in factors]

    def rule(relevance: Tensor) -> tuple[Tensor, ...]:
        with torch.enable_grad():
            sizes = [value.abs().requires_grad_(True) for value in values]
            total = multiply(*sizes)
            share = torch.where(total > _TINY, relevance / total.clamp(min=_TINY), 0.0)
            slopes = torch.autograd.grad(total, sizes, share.detach() / len(sizes))
        return tuple((size * slope).detach() for size, slope in zip(sizes, slopes, strict=True))

    return _ruled(rule, multiply(*values), *factors)


def _start(x: Tensor) -> Tensor:
    """The tensor, as a new leaf of the graph if it has no gradient history."""
    return x if x.requires_grad else x.detach().requires_grad_(True)


def _passed(x: Tensor, output: Tensor) -> Tensor:
    return _ruled(lambda relevance: (_shrunk(relevance, x),), output, x)


def _matrix_sum(
    rules: propagating,
    output: Tensor,
    added: Tensor,
    first: Tensor,
    second: Tensor,
    *,
    beta=1,
    alpha=1,
) -> Tensor:
    """The rules of output = beta·added + alpha·first @ second."""
    found = rules.product((first, second), lambda a, b: alpha * (a @ b))
    return rules.sum(found, _passed(added, added.detach() * beta), output) if beta else found


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
    F.gelu, F.silu, F.elu, F.celu, F.selu, F.mish, F.softplus, F.softsign, F.logsigmoid, F.prelu,
    F.hardtanh, F.hardswish, F.hardsigmoid, F.hardshrink, F.softshrink, F.tanhshrink, F.threshold,
    torch.sigmoid, Tensor.sigmoid, torch.tanh, Tensor.tanh,
    torch.clamp, Tensor.clamp, Tensor.clamp_, torch.clip, Tensor.clip,
    F.softmax, torch.softmax, Tensor.softmax, F.log_softmax, torch.log_softmax, Tensor.log_softmax,
    F.layer_norm, F.rms_norm, F.batch_norm, F.group_norm, F.instance_norm, F.dropout,
}  # fmt: skip
_ADDED = {
    torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, Tensor.add_, Tensor.__iadd__,
    torch.sub, Tensor.sub, Tensor.__sub__, Tensor.__rsub__, Tensor.sub_, Tensor.__isub__,
    torch.subtract, Tensor.subtract, torch.rsub,
}  # fmt: skip
# Sums over one tensor: its elements share the relevance of the sum.
_SUMMED = {torch.sum, Tensor.sum}
# Reciprocal root of a mean square: norms that are written out multiply with it.
_NORM = {torch.rsqrt, Tensor.rsqrt}
# Their integer inputs are not part of the graph.
_LOOKED_UP = {F.embedding, F.embedding_bag}
_MULTIPLIED = {torch.mul, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.mul_, Tensor.__imul__}
_MATRIX = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_MATRIX_ADDED = {torch.addmm, Tensor.addmm, torch.baddbmm, Tensor.baddbmm}
_DIVIDED = {torch.div, Tensor.div, Tensor.__truediv__, Tensor.div_}


class propagating(TorchFunctionMode):
    """Inside, the backward pass carries relevance.

    Scaled dot-product attention is computed step by step.

    Args:
        published: sums and products of activations by the rules of the authors' code (Chefer et
            al., arXiv 2012.09838), whose shares have signs, instead of by |share|. Its totals of a
            sum run over the batch; here every sample has its own.
    """

    def __init__(self, published: bool = False) -> None:
        super().__init__()
        self.sum = _signed_sum if published else _sum
        self.product = _signed_product if published else _product

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        output = func(*args, **kwargs)
        if not isinstance(output, Tensor) or not torch.is_grad_enabled():
            return output
        tensors = [a for a in args[:2] if isinstance(a, Tensor)]
        if func in _LOOKED_UP:
            return _passed(_start(output), output)
        if func in _LINEAR:
            x = _start(args[0] if args else kwargs["input"])
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            rest = args[3:]
            named = {k: v for k, v in kwargs.items() if k not in ("input", "weight", "bias")}

            def product(value: Tensor, w: Tensor) -> Tensor:
                return func(value, w, None, *rest, **named)

            return _ruled(_positive_flow(x, weight, product), output, x)
        if func in _PASSED:
            return _passed(args[0] if args else kwargs["input"], output)
        if func in _ADDED and len(tensors) == 2:
            return self.sum(tensors[0], tensors[1], output)
        if func in _MATRIX and len(tensors) == 2:
            return self.product(tensors, torch.matmul)
        if func in _MATRIX_ADDED and len(args) == 3:
            return _matrix_sum(self, output, *args, **kwargs)
        if func is torch.einsum and isinstance(args[0], str):
            operands = args[1] if isinstance(args[1], (tuple, list)) else args[1:]
            return self.product(operands, partial(torch.einsum, args[0]))
        if func in _SUMMED and tensors and tensors[0].requires_grad:
            return self.product(tensors[:1], lambda x: func(x, *args[1:], **kwargs))
        if func in _NORM:
            return output.detach()
        if func in _MULTIPLIED and len(tensors) == 2:
            if tensors[0].requires_grad and tensors[1].requires_grad:
                return self.product(tensors, torch.mul)
            tensors = [t for t in tensors if t.requires_grad]
        if func in _ADDED | _MULTIPLIED | _DIVIDED and tensors:
            return _passed(tensors[0], output)
        return output

    def _attention(
        self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **rest
    ) -> Tensor:
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        scores = self.product((query, key.mT), lambda a, b: a @ b * scale)
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
        return self.product((weights, value), torch.matmul)
