"""Real values that a tensor can have, followed from quantizers through what is done to it.

A quantized tensor carries a scale, a zero point and a bit width that anybody may write, or may
leave as they were while the values change. So its declared range is compared with the interval in
which interval arithmetic, from the last quantizer on, finds its values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor, QuantTensor
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from brevitas_axe.proof.certificate.floats import numbers_of
from brevitas_axe.proof.graph.grid import Unprovable, quantizer_range

# Smallest and largest real value; None where nothing is known.
Interval = tuple[float, float] | None

_MAX_BITS = 64
_SAME = {
    *("alias", "clone", "contiguous", "detach", "_to_copy", "lift_fresh", "lift", "to", "positive"),
    *("dropout", "native_dropout", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand"),
    *("view", "_unsafe_view", "reshape", "flatten", "select", "slice", "split", "chunk", "unbind"),
    *("split_with_sizes", "_reshape_alias", "as_strided", "diagonal", "unfold", "narrow", "flip"),
    *("unsafe_split", "roll", "repeat", "index", "index_select", "gather", "take", "rot90", "topk"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d"),
    *("replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle", "max_pool1d"),
    *("channel_shuffle", "native_channel_shuffle", "max_pool2d", "max_pool2d_with_indices"),
    *("max_pool3d_with_indices", "adaptive_max_pool2d", "adaptive_max_pool3d", "view_copy"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "masked_select", "sort"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "max", "min", "amax", "amin"),
    *("aminmax", "median", "mode", "cummax", "cummin", "repeat_interleave", "resolve_conj"),
    *("resolve_neg", "mean", "embedding"),
}
_WITH_ZEROS = {
    *("im2col", "tril", "triu", "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d"),
    *("adaptive_avg_pool2d", "adaptive_avg_pool3d", "_adaptive_avg_pool2d"),
    "_adaptive_avg_pool3d",
}
_UNIONS = {
    *("cat", "stack", "where", "masked_fill", "masked_scatter", "scatter", "index_copy", "copy"),
    *("copy_", "slice_scatter", "select_scatter", "index_fill", "hstack", "constant_pad_nd"),
    *("maximum", "minimum", "fill", "index_put", "pad"),
}
_MONOTONE: dict[str, Callable[[float], float]] = {
    "relu": lambda x: max(x, 0.0),
    "relu6": lambda x: min(max(x, 0.0), 6.0),
    "round": lambda x: float(round(x)),
    "floor": math.floor,
    "ceil": math.ceil,
    "trunc": math.trunc,
}


class Intervals:
    """Intervals of tensors, filled while a model runs."""

    def __init__(self) -> None:
        self._of = WeakTensorKeyDictionary()
        self._seen = WeakTensorKeyDictionary()

    def born(self, output: Any, derived: bool) -> None:
        """Notes what a quantizer or layer, or the caller, declares of its output.

        Args:
            output: tensors, in any structure.
            derived: the bit widths are those that Brevitas derives for sums; see read_input.
        """
        for part in tree_leaves(output, is_leaf=lambda part: isinstance(part, QuantTensor)):
            tensor = getattr(part, "value", part)
            if isinstance(tensor, Tensor):
                self._of[tensor] = declared(part, derived)

    def came_from_elsewhere(self, output: Any, model: nn.Module) -> bool:
        """Whether an output was computed by nothing that was seen, and is no part of the model."""
        own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        parts = tree_leaves(output, is_leaf=lambda part: isinstance(part, QuantTensor))
        tensors = [getattr(part, "value", part) for part in parts]
        return any(
            tensor not in self._of and tensor not in self._seen and id(tensor) not in own
            for tensor in tensors
            if isinstance(tensor, Tensor) and tensor.is_floating_point()
        )

    def check(
        self, value: IntQuantTensor | FloatQuantTensor, low: int, high: int, step: float = 1.0
    ) -> None:
        """Raises Unprovable unless all values are known to be within integers times the scale.

        Args:
            value: the tensor.
            low, high: integers.
            step: of a floating-point format, of which they are multiples.
        """
        if value.value not in self._of:
            raise Unprovable(
                "its input was computed where it could not be followed, such as in another thread"
            )
        ends, scale = self._of[value.value], float(_doubles(value.scale).abs().max()) * step
        if ends is None:
            raise Unprovable(
                "its input was changed, in a way that is not followed, after it was quantized; "
                "quantize it once more"
            )
        if ends[0] < (low - 0.5) * scale or ends[1] > (high + 0.5) * scale:
            raise Unprovable(
                f"its input may have integers from {ends[0] / scale:.0f} to {ends[1] / scale:.0f}, "
                f"more than the {low} to {high} that it declares; quantize it once more"
            )

    def known(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed by operations that were seen."""
        return tensor in self._of

    def follow(self, name: str, args: tuple[Any, ...], kwargs: dict, result: Any) -> None:
        """Notes the results of an operation, and their intervals where its tensors are known."""
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._seen[tensor] = True
        if not any(isinstance(t, Tensor) and t in self._of for t in tree_leaves((args, kwargs))):
            return
        plain = name if name in _UNIONS else name.rstrip("_")
        try:
            found = self._after(plain, args, kwargs, result)
        except (IndexError, TypeError, ValueError, ArithmeticError, RuntimeError):
            found = None
        if found is not None and not all(map(math.isfinite, found)):
            found = None
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._of[tensor] = found
        written = args[0] if args and name.endswith("_") and not name.endswith("__") else None
        if isinstance(written, Tensor):
            self._of[written] = found
            if written._base is not None:  # a write into a view
                self._of[written._base] = _union([self._operand(written._base), found])

    def _operand(self, value: Any) -> Interval:
        """Interval of a tensor, of a constant one by its values, or of a number."""
        if not isinstance(value, Tensor):
            return (float(value), float(value)) if isinstance(value, int | float) else None
        if value in self._of:
            return self._of[value]
        if value.numel() == 0 or value.is_complex():
            return None
        with _disable_current_modes():
            ends = torch.aminmax(value.detach().cpu().to(torch.float64))
            return float(ends.min), float(ends.max)

    def _after(self, name: str, args: tuple[Any, ...], kwargs: dict, result: Any) -> Interval:
        first = self._operand(args[0])
        if name in _SAME:
            return first
        if name in _WITH_ZEROS:
            whole = name != "avg_pool2d" or len(args) < 7 or args[6] is None  # a divisor of its own
            return _union([first, (0.0, 0.0)]) if whole else None
        if name in _UNIONS:
            return self._joined(name, args, kwargs)
        if name in ("sum", "nansum"):
            times = args[0].numel() // max(result.numel(), 1)
            return _mapped(first, lambda x: x * times)
        if name in _MONOTONE:
            places = len(args) > 1 or kwargs.get("decimals", 0)
            return None if places else _mapped(first, _MONOTONE[name])
        if name == "neg":
            return _mapped(first, lambda x: -x)
        if name == "abs":
            ends = first
            inside = ends is not None and ends[0] <= 0 <= ends[1]
            return _union([_mapped(ends, abs), (0.0, 0.0)]) if inside else _mapped(ends, abs)
        if name in ("hardtanh", "clamp", "clamp_min", "clamp_max"):
            return self._clamped(name, args, kwargs)
        if name in ("add", "sub", "rsub"):
            left, right = map(self._operand, args[:2])
            if name == "rsub":
                left, right = right, left
            factor = kwargs.get("alpha", 1) * (1 if name == "add" else -1)
            right = _mapped(right, lambda x: x * factor)
            return None if left is None or right is None else _sum(left, right)
        if name in ("mul", "div", "true_divide") and not kwargs.get("rounding_mode"):
            return _product(*map(self._operand, args[:2]), divide=name != "mul")
        return None

    def _joined(self, name: str, args: tuple[Any, ...], kwargs: dict) -> Interval:
        leaves: list[Any] = [
            part
            for part in tree_leaves((args, kwargs))
            if isinstance(part, Tensor) and part.is_floating_point()
        ]
        if name == "constant_pad_nd":
            leaves.append(args[2] if len(args) > 2 else kwargs.get("value", 0))
        elif name == "pad":
            leaves += [value for value in (*args[3:], kwargs.get("value", 0)) if value is not None]
        elif name in ("masked_fill", "fill", "index_fill", "scatter", "where"):
            leaves += [part for part in args[1:] if isinstance(part, float | int)]
            leaves += [part for part in kwargs.values() if isinstance(part, float | int)]
        elif name == "index_put" and any(args[3:]):
            return None  # it accumulates
        return _union([self._operand(leaf) for leaf in leaves])

    def _clamped(self, name: str, args: tuple[Any, ...], kwargs: dict) -> Interval:
        low, high = {
            "hardtanh": lambda: (*args[1:], *(-1.0, 1.0)[len(args) - 1 :]),
            "clamp": lambda: (*args[1:], None, None)[:2],
            "clamp_min": lambda: (args[1], None),
            "clamp_max": lambda: (None, args[1]),
        }[name]()
        low, high = kwargs.get("min", low), kwargs.get("max", high)
        ends = self._operand(args[0])
        floor = (-math.inf, -math.inf) if low is None else self._operand(low)
        top = (math.inf, math.inf) if high is None else self._operand(high)
        if ends is None or floor is None or top is None:
            return None
        return min(max(ends[0], floor[0]), top[0]), min(max(ends[1], floor[1]), top[1])


def declared(value: object, derived: bool = False) -> Interval:
    """The real values that a quantized tensor says it can have; see `Intervals.born`."""
    if isinstance(value, FloatQuantTensor):
        return _declared_floats(value)
    if not isinstance(value, IntQuantTensor):
        return None
    bits = float(value.bit_width.max()) if value.bit_width.numel() else math.nan
    points, scales = _doubles(value.zero_point), _doubles(value.scale)
    if not 1 <= bits <= _MAX_BITS or not (points.numel() and scales.numel()):
        return None
    low, high = quantizer_range(math.ceil(bits) + derived, bool(value.signed), narrow=False)
    ends = low - float(points.max()), high - float(points.min())
    corners = [end * float(s) for end in ends for s in (scales.min(), scales.max())]
    return min(corners), max(corners)


def _declared_floats(value: FloatQuantTensor) -> Interval:
    """The same for floating-point numbers; None where they may be infinite."""
    try:
        numbers = numbers_of(value, "tensor")
    except Unprovable:
        return None
    size = float(_doubles(value.scale).abs().max()) * numbers.step if value.scale.numel() else 0.0
    return -numbers.largest * size, numbers.largest * size


def _doubles(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().double()


def _union(intervals: Sequence[Interval]) -> Interval:
    known = [interval for interval in intervals if interval is not None]
    if len(known) < len(intervals) or not known:
        return None
    return min(low for low, _ in known), max(high for _, high in known)


def _mapped(interval: Interval, function: Callable[[float], float]) -> Interval:
    """Of a monotone function of the values."""
    if interval is None:
        return None
    ends = [float(function(end)) for end in interval]
    return min(ends), max(ends)


def _sum(left: tuple[float, float], right: tuple[float, float]) -> Interval:
    return left[0] + right[0], left[1] + right[1]


def _product(left: Interval, right: Interval, divide: bool) -> Interval:
    if left is None or right is None or (divide and right[0] <= 0 <= right[1]):
        return None
    corners = [x / y if divide else x * y for x in left for y in right]
    return min(corners), max(corners)
