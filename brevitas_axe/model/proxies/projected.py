"""The differentiable step between rounded weights and the integers a layer computes with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from brevitas_axe.model.layers import Layer, roll_weight, unroll_weight
from brevitas_axe.model.proxies.projection import Budget, project, subtract_mean


class ProjectedIntegers(torch.autograd.Function):
    """Clips rounded weights to their range, then projects every tile on its accumulator budget.

    Backward: straight-through where the projection changed nothing; zero outside the integer
    range. In a projected tile, the nonzero weights get the gradient of the Euclidean projection on
    the l1 ball: their mean signed gradient is subtracted, since the projection undoes a common
    change. Weights projected to 0 keep their gradient, so that they can become nonzero again.

    Projected integers q do not follow the scale s, so that their value q·s has the derivative q
    with respect to it: in projected tiles, the gradient through the division w/s is subtracted
    from that of the scale.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rounded: Tensor,
        ratio: Tensor,
        scale: Tensor,
        layer: Layer,
        low: int,
        high: int,
        budget: Budget,
    ) -> Tensor:
        """Returns whole numbers in the weight's shape.

        Args:
            ctx: of autograd.
            rounded: weights / scale, rounded, in the weight's shape.
            ratio: weights / scale, without gradient.
            scale: broadcastable to the weights.
            layer: whose weights they are.
            low, high: smallest and largest weight integer.
            budget: of each tile.
        """
        integers = rounded.round().clamp_(low, high)
        unrolled = unroll_weight(layer, integers)
        rows = unrolled.flatten(0, 1).contiguous()
        values = unroll_weight(layer, ratio).flatten(0, 1).contiguous()
        over = project(rows, values, budget, max(-low, high))
        ctx.range, ctx.layer, ctx.budget = (low - 0.5, high + 0.5), layer, budget
        ctx.over = over if over is not None and bool(over.any()) else None
        if ctx.over is not None:
            integers = roll_weight(layer, rows.unflatten(0, unrolled.shape[:2]))
        ctx.save_for_backward(rounded, ratio, scale, rows)
        return integers

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the rounded weights and of the scale."""
        rounded, ratio, scale, rows = ctx.saved_tensors
        gradient = torch.ops.aten.hardtanh_backward(gradients[0], rounded, *ctx.range)
        if ctx.over is None:
            return gradient, *[None] * 6
        unrolled = unroll_weight(ctx.layer, gradient)
        flat = unrolled.flatten(0, 1).contiguous()
        values = unroll_weight(ctx.layer, ratio).flatten(0, 1).contiguous()
        scaled = subtract_mean(flat, rows, values, ctx.over, ctx.budget)
        gradient = roll_weight(ctx.layer, flat.view_as(unrolled))
        # Each tile's sum is put at its first weight, so that it is added to that weight's scale.
        spread = torch.zeros_like(unrolled)
        spread[..., :: ctx.budget.tile_size_in(unrolled.shape[2])] = scaled.view(
            *unrolled.shape[:2], -1
        )
        back = roll_weight(ctx.layer, spread).sum_to_size(scale.shape) / scale
        return gradient, None, back, *[None] * 4
