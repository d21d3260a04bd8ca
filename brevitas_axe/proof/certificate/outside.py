"""Follows numbers between the layers: operations that move, scale or add them.

Operations that are not known to be harmless are not proven. Every operation on a number that came
from a quantizer or a layer is either in one of the lists below, or an entry of the certificate by
name.

A number has a *source*, the quantizer or layer that gave it, and a *place*, which changes when
elements are moved. Elementwise operations keep source and place, so that x·sigmoid(x) is
known as a function of each x alone and may be averaged, where (x·w).mean() is a dot product: a sum
over axes along which two factors vary.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from brevitas.quant_tensor import QuantTensor
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from brevitas_axe.proof.certificate.axes import aligned, axes_of, carried, varying

_PRODUCTS = {
    *("mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "vdot", "matmul", "linear"),
    *("einsum", "convolution", "_convolution", "mkldnn_convolution", "convolution_overrideable"),
    *("_int_mm", "_trilinear", "addr", "_grouped_mm", "_sparse_mm", "_scaled_mm"),
}
_PRODUCT_FAMILIES = (
    *("_scaled_dot_product", "lstm", "gru", "rnn", "quantized"),
    *("_native_multi_head", "_transformer_encoder"),
)
# Elements keep their values; their places may change.
_KEEPS = {
    *("alias", "clone", "contiguous", "detach", "_to_copy", "lift_fresh", "lift", "to", "copy"),
    *("positive", "dropout", "native_dropout", "neg", "resolve_conj", "resolve_neg", "fill"),
}
_AXES = {"permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "view", "_unsafe_view"}
_MOVES = {
    *("reshape", "flatten", "select", "slice", "split", "split_with_sizes", "chunk", "unbind"),
    *("_reshape_alias", "as_strided", "diagonal", "unfold", "narrow", "unsafe_split", "flip"),
    *("roll", "repeat", "index", "index_select", "gather", "take", "constant_pad_nd", "pad"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "im2col"),
    *("replication_pad2d", "replication_pad3d", "pixel_shuffle", "pixel_unshuffle", "rot90"),
    *("channel_shuffle", "native_channel_shuffle", "max_pool1d", "max_pool2d_with_indices"),
    *("max_pool3d_with_indices", "max_pool2d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "view_copy", "cummax"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "topk", "masked_select", "cummin"),
    *("sort", "max", "min", "amax", "amin", "aminmax", "median", "repeat_interleave", "tril"),
    *("triu", "mode"),
}
_JOINS = {
    *("cat", "stack", "where", "masked_fill", "masked_scatter", "scatter", "index_copy", "maximum"),
    *("minimum", "copy_", "slice_scatter", "select_scatter", "index_fill", "lerp_", "hstack"),
}
# Functions of single elements that are not polynomials.
_CURVES = {
    *("relu", "relu6", "leaky_relu", "elu", "celu", "selu", "gelu", "silu", "mish", "sigmoid"),
    *("tanh", "hardtanh", "hardsigmoid", "hardswish", "softplus", "clamp", "clamp_min", "log"),
    *("clamp_max", "exp", "exp2", "expm1", "log1p", "log2", "log10", "sqrt", "rsqrt", "abs"),
    *("reciprocal", "round", "floor", "ceil", "trunc", "frac", "sign", "sin", "cos", "tan", "erf"),
    *("erfc", "atan", "asin", "acos", "sinh", "cosh", "asinh", "acosh", "atanh", "nan_to_num"),
    *("log_sigmoid_forward", "threshold", "hardshrink", "softshrink", "_prelu_kernel", "prelu"),
    *("logit", "sgn", "remainder", "fmod", "floor_divide", "atan2", "rrelu_with_noise"),
}
# Units of their own that compute in float and have no integer accumulator.
_FLOAT_UNITS = {
    *("native_layer_norm", "native_group_norm", "native_batch_norm", "cudnn_batch_norm"),
    *("_native_batch_norm_legit_no_training", "_native_batch_norm_legit", "batch_norm"),
    *("_softmax", "_log_softmax", "_safe_softmax", "softmax", "log_softmax", "logsumexp"),
    *("layer_norm", "group_norm", "native_batch_norm_backward", "_batch_norm_impl_index"),
    "batch_norm_elemt",
}
_ADDS = {"add", "sub", "rsub", "__iadd__", "__isub__"}
_TIMES = {"mul", "div", "true_divide", "divide", "multiply"}
# Means over axes: pooling, unless their elements have different weights. Axes counted from the end,
# None where the call gives them.
_MEANS: dict[str, tuple[int, ...] | None] = {
    **dict.fromkeys(("mean", "sum", "nansum", "nanmean")),
    **dict.fromkeys(("avg_pool1d", "adaptive_avg_pool1d", "_adaptive_avg_pool1d"), (-1,)),
    **dict.fromkeys(("avg_pool2d", "adaptive_avg_pool2d", "_adaptive_avg_pool2d"), (-1, -2)),
    **dict.fromkeys(("avg_pool3d", "adaptive_avg_pool3d", "_adaptive_avg_pool3d"), (-1, -2, -3)),
}
# Results that are no numbers: truth values, positions, shapes.
_ANSWERS = {
    *("eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf", "isfinite", "logical_not", "argmax"),
    *("argmin", "argsort", "nonzero", "any", "all", "logical_and", "logical_or", "equal", "size"),
    *("sym_size", "sym_stride", "stride", "is_same_size", "allclose", "isclose", "logical_xor"),
    *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "numel"),
    *("new_zeros", "new_ones", "new_empty", "new_full", "new_empty_strided", "searchsorted"),
    *("bernoulli", "bucketize", "_assert_async", "_assert_tensor_metadata", "is_nonzero", "zero"),
    *("set_", "resize_", "multinomial", "record_stream", "prim_layout", "dim", "is_contiguous"),
}
_VALUE, _SCALED, _POWER, _CURVE, _PRODUCT, _MEAN_SQUARE = range(6)
_ROOTS = {"sqrt", "rsqrt"}


@dataclass(frozen=True)
class _Number:
    """What is known of a tensor.

    Attributes:
        source: of its elements.
        place: changes when elements are moved.
        kind: the value itself, times a constant, a power of it, another function of it, a product
            with something else, or a mean of squares whose root has not been taken yet.
        axes: along which both factors of a product vary.
    """

    source: int
    place: int
    kind: int = _VALUE
    axes: frozenset[int] = frozenset()


class Outside(TorchDispatchMode):
    """Follows numbers from quantizers and layers, and reports operations that may add them up.

    Args:
        inside: function that is true while a quantizer or a module with an own entry runs.
        tell: called with the name of an operation that multiplies and adds, or is unknown.
        seen: called with the name, arguments and result of every operation.
    """

    def __init__(
        self,
        inside: Callable[[], bool],
        tell: Callable[[str], None],
        seen: Callable[[str, tuple, dict, Any], None],
    ) -> None:
        super().__init__()
        self._inside, self._tell, self._seen = inside, tell, seen
        self._numbers = WeakTensorKeyDictionary()
        self._count = itertools.count()

    def born(self, value: Any, before: Any = None) -> None:
        """Marks new numbers: results of a quantizer or layer, or arguments of the model.

        Args:
            value: with these numbers.
            before: what a quantizer rounded to them; products stay products, and pieces of one
                tensor stay pieces of it.
        """
        known = [self._numbers[t] for t in _values(before) if t in self._numbers]
        for leaf in tree_leaves(value, is_leaf=lambda part: isinstance(part, QuantTensor)):
            tensor = getattr(leaf, "value", leaf)
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self._numbers[tensor] = _rounded(known[0]) if known else self._fresh()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        self._seen(name, args, kwargs, result)
        if self._inside():
            self.check(args, kwargs)
            return result
        shown = name if func.namespace == "aten" else f"{func.namespace}.{name}"
        if name in _PRODUCTS or name.startswith(_PRODUCT_FAMILIES):
            self._tell(shown)
            self._note(result, self._fresh())
            return result
        given = [(t, self._numbers[t]) for t in _tensors((args, kwargs)) if t in self._numbers]
        if not given:
            if name.startswith("embedding"):
                self.born(result)
            return result
        plain = name if name in _JOINS or name in _ANSWERS else name.rstrip("_")
        if func.namespace not in ("aten", "prims") or plain in ("_local_scalar_dense", "item"):
            self._tell(shown)
            self._note(result, self._fresh())
        elif plain not in _ANSWERS:
            self._note(result, self._after(plain, shown, given, args, kwargs, result))
            self._in_place(func, args, result)
        return result

    def check(self, *values: Any) -> None:
        """Reports means of squares that are used anywhere but under the root of a norm."""
        for tensor in _tensors(values):
            if tensor in self._numbers and self._numbers[tensor].kind == _MEAN_SQUARE:
                self._tell("mean of squares")

    def _fresh(self) -> _Number:
        return _Number(next(self._count), next(self._count))

    def _note(self, result: Any, number: _Number) -> None:
        several = not isinstance(result, Tensor)
        for tensor in _tensors(result):
            # Of a maximum and its index, only the first is a number.
            if tensor.is_floating_point() or not (several or tensor.dtype == torch.bool):
                self._numbers[tensor] = number

    def _in_place(self, func: Any, args: tuple, result: Any) -> None:
        """A write into a view changes its base, too."""
        written = args[0] if func._schema.is_mutable and args else None
        number = self._numbers.get(result) if isinstance(result, Tensor) else None
        if isinstance(written, Tensor) and number is not None:
            self._numbers[written] = number
            base = written._base
            if base is not None:
                axes = frozenset(range(base.ndim)) if number.kind == _PRODUCT else frozenset()
                self._numbers[base] = replace(number, place=next(self._count), axes=axes)

    def _after(
        self,
        name: str,
        shown: str,
        given: Sequence[tuple[Tensor, _Number]],
        args: tuple,
        kwargs: dict,
        result: Any,
    ) -> _Number:
        """Number of the result of one operation; reports what may be a dot product."""
        tensor, first = given[0]
        ranks = [t.ndim for t in _tensors(result)]
        every = frozenset(range(max(ranks, default=0)))
        if any(number.kind == _MEAN_SQUARE for _, number in given):
            return self._towards_root(name, given, args)
        if name in _KEEPS and len(given) == 1:
            return first
        if name in _AXES and len(given) == 1:
            axes = carried(name, first.axes, tensor, args, result) if first.axes else first.axes
            return replace(first, place=next(self._count), axes=axes)
        if name in ("index", "index_select", "take") and _uneven(args[1:]):
            return replace(first, place=next(self._count), kind=_PRODUCT, axes=every)
        if name in _MOVES:
            kept = every if first.axes else first.axes
            return replace(first, place=next(self._count), axes=kept)
        if name in _JOINS or (name == "index_put" and not any(args[3:])):
            return self._joined(given, every)
        if name in _CURVES:
            return self._curve(given, every)
        if name in _ADDS:
            return self._sum(shown, given, args, result)
        if name in _TIMES:
            return self._product(given, args, result)
        if name in ("addcmul", "addcdiv", "lerp"):
            return replace(self._fresh(), kind=_PRODUCT, axes=every)
        if name in ("pow", "square"):
            exponent = args[1] if name == "pow" else 2
            whole = isinstance(exponent, int | float) and exponent > 1 and exponent == int(exponent)
            if first.kind in (_VALUE, _SCALED, _POWER) and whole and len(given) == 1:
                return replace(first, kind=_POWER, axes=every)
            return self._curve(given, every)
        if name in _FLOAT_UNITS:
            return self._fresh()
        if name in _MEANS:
            over = axes_of(_MEANS[name], tensor, args, kwargs)
            if first.axes & over and first.kind == _POWER and name == "mean":
                return replace(self._fresh(), kind=_MEAN_SQUARE)
            if first.axes & over:
                self._tell(shown)
            return self._fresh()
        self._tell(shown)
        return self._fresh()

    def _towards_root(
        self, name: str, given: Sequence[tuple[Tensor, _Number]], args: tuple
    ) -> _Number:
        """Follows a mean of squares: with its root it is a norm, a unit of its own in float.

        On the way, constants may be added and single numbers multiplied, as RMS norms do.
        """
        alone = len(given) == 1
        half = name == "pow" and args[1] in (0.5, -0.5)
        if alone and (name in _ROOTS or half):
            return self._fresh()
        constant = all(not isinstance(arg, Tensor) or arg.numel() == 1 for arg in args[1:])
        kept = name in _KEEPS or name in _AXES or ((name in _ADDS or name in _TIMES) and constant)
        if not (alone and kept):
            self._tell("mean of squares")
            return self._fresh()
        return replace(given[0][1], place=next(self._count))

    def _joined(self, given: Sequence[tuple[Tensor, _Number]], every: frozenset[int]) -> _Number:
        numbers = [number for _, number in given]
        one = len({number.source for number in numbers}) == 1
        number = replace(numbers[0], place=next(self._count)) if one else self._fresh()
        products = any(n.axes for n in numbers)
        kind = max(n.kind for n in numbers) if one or products else _VALUE
        return replace(number, kind=kind, axes=every if products else frozenset())

    def _curve(self, given: Sequence[tuple[Tensor, _Number]], every: frozenset[int]) -> _Number:
        """A function of each element; of a product it is a product, as relu(x·w) is relu(x)·w."""
        if any(number.kind == _PRODUCT for _, number in given):
            return self._joined(given, every)
        if len({(n.source, n.place) for _, n in given}) == 1:
            return replace(given[0][1], kind=_CURVE, axes=frozenset())
        return replace(self._fresh(), kind=_CURVE)

    def _sum(
        self, shown: str, given: Sequence[tuple[Tensor, _Number]], args: tuple, result: Tensor
    ) -> _Number:
        numbers = [number for _, number in given]
        if len(numbers) == 1:  # plus a constant
            return replace(numbers[0], axes=aligned(given[0][0], numbers[0].axes, result))
        left, right = numbers[:2]
        axes = frozenset(axis for t, number in given for axis in aligned(t, number.axes, result))
        if left.source != right.source:
            products = any(n.kind == _PRODUCT for n in numbers)
            return replace(self._fresh(), kind=_PRODUCT if products else _VALUE, axes=axes)
        if left.place == right.place:
            return replace(left, kind=max(left.kind, right.kind), axes=axes)
        # Elements of one tensor, added with different weights: a dot product.
        if {left.kind, right.kind} & {_SCALED, _POWER, _PRODUCT}:
            self._tell(shown)
        return self._fresh()

    def _product(
        self, given: Sequence[tuple[Tensor, _Number]], args: tuple, result: Tensor
    ) -> _Number:
        factors = [arg for arg in args[:2] if isinstance(arg, Tensor) and arg.numel() != 1]
        numbers = [number for _, number in given]
        first = numbers[0]
        if len(factors) < 2 and len(numbers) == 1:
            kind = max(first.kind, _SCALED)
            return replace(first, kind=kind, axes=aligned(given[0][0], first.axes, result))
        both = varying(args[0], result) & varying(args[1], result)
        for tensor, number in given:
            both |= aligned(tensor, number.axes, result)
        alone = len(numbers) == 2 and len({(n.source, n.place) for n in numbers}) == 1
        kinds = {n.kind for n in numbers}
        if alone and _PRODUCT not in kinds:
            if _CURVE in kinds:
                return replace(first, kind=_CURVE, axes=frozenset())
            return replace(first, kind=_POWER, axes=both)
        return replace(first, kind=_PRODUCT, axes=both) if both else self._fresh()


def _rounded(number: _Number) -> _Number:
    """A number behind a quantizer: itself, or what it was multiplied with."""
    if number.kind in (_SCALED, _PRODUCT):
        return number
    return replace(number, kind=_VALUE, axes=frozenset())


def _uneven(args: tuple) -> bool:
    """Whether indices take some elements more often than others."""
    for places in _tensors(args):
        if places.dtype in (torch.int32, torch.int64) and places.numel() > 1:
            counts = torch.unique(places, return_counts=True)[1]
            if int(counts.min()) < int(counts.max()):
                return True
    return False


def _values(value: Any) -> Iterable[Tensor]:
    leaves = tree_leaves(value, is_leaf=lambda part: isinstance(part, QuantTensor))
    return (t for t in (getattr(part, "value", part) for part in leaves) if isinstance(t, Tensor))


def _tensors(value: Any) -> Iterable[Tensor]:
    return (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
