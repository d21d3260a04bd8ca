"""Axes of tensors through broadcasts, permutations and views, for what follows a live model."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def varying(factor: Any, result: Tensor) -> frozenset[int]:
    """Axes of the result along which a factor differs from element to element."""
    if not isinstance(factor, Tensor):
        return frozenset()
    ahead = result.ndim - factor.ndim
    return frozenset(ahead + axis for axis, size in enumerate(factor.shape) if size > 1)


def aligned(operand: Tensor, axes: frozenset[int], result: Tensor) -> frozenset[int]:
    """Axes of an operand as axes of a broadcast result."""
    return frozenset(axis + result.ndim - operand.ndim for axis in axes)


def axes_of(
    fixed: tuple[int, ...] | None, tensor: Tensor, args: tuple, kwargs: dict
) -> frozenset[int]:
    """Axes that a mean goes over."""
    named: Any = fixed
    if fixed is None:
        named = kwargs.get("dim", args[1] if len(args) > 1 else None)
    if named is None or named == []:
        named = range(tensor.ndim)
    axes = [named] if isinstance(named, int) else list(named)
    return frozenset(axis % max(tensor.ndim, 1) for axis in axes)


def carried(
    name: str, axes: frozenset[int], tensor: Tensor, args: tuple, result: Tensor
) -> frozenset[int]:
    """Positions of axes after they were permuted, added, dropped or joined."""
    rank = tensor.ndim
    if name == "permute":
        order = [axis % rank for axis in args[1]]
        return frozenset(order.index(axis) for axis in axes)
    if name in ("transpose", "t"):
        left, right = (axis % rank for axis in (args[1:3] if name == "transpose" else (0, 1)))
        swap = {left: right, right: left}
        return frozenset(swap.get(axis, axis) for axis in axes)
    if name == "unsqueeze":
        at = args[1] % (rank + 1)
        return frozenset(axis + (axis >= at) for axis in axes)
    if name == "expand":
        return aligned(tensor, axes, result)
    return _carried_by_view(axes, tuple(tensor.shape), tuple(result.shape))


def _carried_by_view(
    axes: frozenset[int], before: tuple[int, ...], after: tuple[int, ...]
) -> frozenset[int]:
    """Axes of one shape in another of the same elements, by their spans of strides."""
    spans = [_spans(shape) for shape in (before, after)]
    found = set()
    for axis in axes:
        first, last = spans[0][axis]
        # An axis of the result is touched where the two spans of strides overlap.
        for index, (start, end) in enumerate(spans[1]):
            if after[index] > 1 and start < last and first < end:
                found.add(index)
    return frozenset(found)


def _spans(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """(stride, stride × size) of every axis of a contiguous tensor."""
    spans, stride = [], 1
    for size in reversed(shape):
        spans.append((stride, stride * size))
        stride *= size
    return spans[::-1]
