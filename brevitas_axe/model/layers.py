"""Finds quantized dot products and unrolls them to matrices.

Every layer here is treated as `groups` independent products of an integer matrix [rows, K] with
columns of K integers: one row per output channel of the group, K = (input channels / groups) ×
kernel, in the order in which the weight tensor stores them. A transposed convolution is unrolled
over its whole kernel; an output pixel uses a subset of these taps, so bounds are safe.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from brevitas import nn as qnn
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.proxy import DecoupledWeightQuantProxyFromInjector
from brevitas.proxy.runtime_quant import DynamicActQuantProxyFromInjector
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption, NonFiniteValues, UnsupportedLayer
from brevitas_axe.formats import minifloat
from brevitas_axe.model.minifloats import format_of, nearest_significant

# A quantizer of a layer, or an injector: Brevitas gives it its attributes at run time.
Proxy = Any

if TYPE_CHECKING:

    class Layer(nn.Module):
        """Common attributes of the layers that `find_layers` returns, for type checkers.

        torch declares every attribute of a module as Tensor | Module. Linear layers have
        no channels, and convolutions no features.
        """

        weight: nn.Parameter
        bias: nn.Parameter | None
        weight_quant: Proxy
        input_quant: Proxy
        bias_quant: Proxy
        output_quant: Proxy
        in_features: int
        in_channels: int
        groups: int
        kernel_size: tuple[int, ...]
        stride: tuple[int, ...]
        dilation: tuple[int, ...]
        padding: tuple[int, ...]
        output_padding: tuple[int, ...]
        padding_mode: str
        _reversed_padding_repeated_twice: list[int]

        def quant_weight(self) -> Any: ...

else:
    Layer = nn.Module

_CONVOLUTIONS = (qnn.QuantConv1d, qnn.QuantConv2d, qnn.QuantConv3d)
_TRANSPOSED = (qnn.QuantConvTranspose1d, qnn.QuantConvTranspose2d, qnn.QuantConvTranspose3d)
DOT_PRODUCTS = (qnn.QuantLinear, *_CONVOLUTIONS, *_TRANSPOSED)
_RECURRENT = (qnn.QuantLSTM, qnn.QuantRNN)
PLAIN_LAYERS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def find_layers(
    model: nn.Module, exclude: tuple[str, ...] = (), tile_scales: bool = False
) -> dict[str, Layer]:
    """Quantized linear and convolution layers by module name, in definition order.

    Args:
        model: any module with Brevitas layers.
        exclude: module names to leave out; each must exist in the model.
        tile_scales: whether layers may have our quantizer with one weight scale per tile.

    Raises:
        InvalidOption: an excluded name does not exist.
        UnsupportedLayer: a quantized layer whose accumulators cannot be bounded here (LSTM and RNN
            gates, group-wise or asymmetric weights), unless excluded.
    """
    modules = dict(model.named_modules())
    for name in exclude:
        if name not in modules and not _is_product(name, model, modules):
            raise InvalidOption(
                f"the excluded layer '{name}' is not in the model; it has: "
                f"{', '.join(n for n, m in modules.items() if isinstance(m, DOT_PRODUCTS))}."
            )
    found = {}
    for name, module in modules.items():
        if is_inside(name, exclude):
            continue
        if isinstance(module, _RECURRENT):
            raise UnsupportedLayer(
                f"layer '{name}' is recurrent and its gates cannot be given an accumulator "
                f"budget; exclude it by name, exclude=('{name}',)."
            )
        proxy = _weight_quantizer(module)
        if proxy is not None:
            ours = tile_scales and getattr(proxy, "scale_tile", None) is not None
            if proxy.is_groupwise and not ours:
                raise UnsupportedLayer(
                    f"layer '{name}' has group-wise weight scales, whose accumulators cannot be "
                    "bounded here; use a per-channel or per-tensor weight quantizer or exclude it."
                )
            found[name] = cast(Layer, module)
    return found


def find_unquantized(model: nn.Module, exclude: tuple[str, ...] = ()) -> list[str]:
    """Names of linear and convolution layers without integer weights."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, PLAIN_LAYERS)
        and not is_inside(name, exclude)
        and _weight_quantizer(module) is None
    ]


def _is_product(name: str, model: nn.Module, modules: dict[str, nn.Module]) -> bool:
    """Whether certificates use this name for a product outside layers."""
    parent, _, product = name.rpartition(".")
    if product == "forward":
        return parent in modules or parent == type(model).__name__
    return product in ("scores", "context") and isinstance(
        modules.get(parent), qnn.QuantMultiheadAttention
    )


def is_inside(name: str, modules: tuple[str, ...]) -> bool:
    """True for the name of one of the modules, or of any part of them."""
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _weight_quantizer(module: nn.Module) -> Proxy:
    """The weight quantizer of a dot product, None where there is none or it is off."""
    proxy: Proxy = module.weight_quant if isinstance(module, DOT_PRODUCTS) else None
    return proxy if proxy is not None and proxy.is_quant_enabled else None


def layer_groups(module: Layer) -> int:
    """Number of independent groups of a layer."""
    return int(getattr(module, "groups", 1))


def unroll_weight(module: Layer, weight: Tensor) -> Tensor:
    """Weight tensor (or anything of its shape) → [groups, rows, K]."""
    groups = layer_groups(module)
    if isinstance(module, _TRANSPOSED):
        inputs, rows = weight.shape[:2]
        grouped = weight.reshape(groups, inputs // groups, rows, -1).transpose(1, 2)
        return grouped.reshape(groups, rows, -1)
    return weight.reshape(groups, weight.shape[0] // groups, -1)


def roll_weight(module: Layer, unrolled: Tensor) -> Tensor:
    """Inverse of `unroll_weight`: [groups, rows, K] → the weight's own shape."""
    shape = module.weight.shape
    if isinstance(module, _TRANSPOSED):
        groups, rows = unrolled.shape[:2]
        grouped = unrolled.reshape(groups, rows, shape[0] // groups, -1).transpose(1, 2)
        return grouped.reshape(shape)
    return unrolled.reshape(shape)


def unroll_input(module: Layer, x: Tensor) -> Tensor:
    """Layer input → [groups, K, columns], one column per dot product of every sample.

    Args:
        module: a layer of `find_layers`.
        x: input as the layer receives it: [..., K] for a linear layer (any number of leading
            dimensions), [N, C, *spatial] or unbatched [C, *spatial] for convolutions.

    Returns:
        Columns ordered by sample, then by output position.
    """
    if isinstance(module, qnn.QuantLinear):
        return x.reshape(-1, x.shape[-1]).mT.unsqueeze(0)
    if x.dim() == len(module.kernel_size) + 1:
        x = x.unsqueeze(0)
    if isinstance(module, _TRANSPOSED):
        patches = _transposed_patches(module, x)
    else:
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        x = F.pad(x, tuple(module._reversed_padding_repeated_twice), mode=mode)
        patches = _patches(x, module.kernel_size, module.stride, module.dilation)
    return patches.unflatten(0, (layer_groups(module), -1))


def _patches(x: Tensor, kernel: tuple, stride: tuple, dilation: tuple) -> Tensor:
    """im2col: [N, C, *spatial] → [C·kernel, N·positions], by one copy of a strided view."""
    axes = len(kernel)
    x = x.transpose(0, 1)
    for axis, (size, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True)):
        x = x.unfold(2 + axis, gap * (size - 1) + 1, step)[..., ::gap]
    # [C, N, *positions, *kernel] → [C, *kernel, N, *positions]
    order = (0, *range(2 + axes, 2 + 2 * axes), *range(1, 2 + axes))
    return x.permute(order).reshape(x.shape[0] * torch.Size(kernel).numel(), -1)


def _transposed_patches(module: Layer, x: Tensor) -> Tensor:
    """Inputs at each tap of a transposed convolution; zeros where there is none."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], stride, strict=True)]
    stuffed = x.new_zeros(*x.shape[:2], *size)
    stuffed[(..., *(slice(None, None, s) for s in stride))] = x
    pad: list[int] = []
    for k, d, p, o in zip(kernel, dilation, module.padding, module.output_padding, strict=True):
        reversed_padding = d * (k - 1) - p
        pad = [reversed_padding, reversed_padding + o, *pad]
    patches = _patches(F.pad(stuffed, pad), kernel, (1,) * len(kernel), dilation)
    # A transposed convolution reads its kernel backwards.
    taps = patches.reshape(x.shape[1], -1, patches.shape[-1])
    return taps.flip(1).reshape(patches.shape)


def input_range(
    quant_input: IntQuantTensor | FloatQuantTensor, layer: Layer | None = None
) -> InputRange:
    """Integers that a quantized activation can take, minus its zero point.

    Narrow ranges are not used: tools such as FINN compute with the full data type. Floating-point
    numbers are integers on their finest grid.

    Args:
        quant_input: the activation.
        layer: the layer that reads it. If its own input quantizer computes the zero point at run
            time, that may be any integer of the type; one that knows its integers says which.
    """
    if layer is not None and layer.input_quant.is_quant_enabled:
        exact = getattr(layer.input_quant, "integer_range", None)
        if exact is not None:
            return exact
    if isinstance(quant_input, FloatQuantTensor):
        return minifloat(format_of(quant_input)).input_range
    bits = int(quant_input.bit_width.max())
    signed = bool(quant_input.signed)
    if layer is not None and _finds_zero_points(layer.input_quant):
        return InputRange(1 - 2**bits, 2**bits - 1)
    points = quant_input.zero_point.detach().round()
    result = InputRange.from_bits(bits, signed, zero_point=int(points.min()))
    return result.union(InputRange.from_bits(bits, signed, zero_point=int(points.max())))


def _finds_zero_points(proxy: Proxy) -> bool:
    """True for an enabled dynamic quantizer that is asymmetric."""
    if not isinstance(proxy, DynamicActQuantProxyFromInjector) or not proxy.is_quant_enabled:
        return False
    fused: Proxy = proxy.fused_activation_quant_proxy
    return not isinstance(fused.tensor_quant.zero_point_impl, ZeroZeroPoint)


def is_accumulator_aware(module: Layer) -> bool:
    """True for Brevitas's own A2Q and A2Q+ weight quantizers."""
    return isinstance(module.weight_quant, DecoupledWeightQuantProxyFromInjector)


def integer_weight(name: str, module: Layer) -> tuple[Tensor, Tensor]:
    """Integer weights and scale that a layer computes with.

    Floating-point weights are integers on their finest grid, whose step is part of the scale. A2Q
    and A2Q+ quantizers depend on their input: call `observe_inputs` first.

    Args:
        name: layer name, for messages.
        module: a layer of `find_layers`.

    Returns:
        (integers, scale): integers int64 in the weight's shape, scale as the quantizer gives it.

    Raises:
        NonFiniteValues: weights or scales contain NaN or infinity.
        UnsupportedLayer: non-zero zero point.
    """
    with torch.no_grad():
        if not torch.isfinite(module.weight).all():
            raise NonFiniteValues(
                f"the weights of layer '{name}' contain NaN or infinity; repair the checkpoint."
            )
        weight = module.quant_weight()
        if isinstance(weight, FloatQuantTensor):
            known = minifloat(format_of(weight))
            scale = weight.scale * float(known.step)  # exact: a power of two
            numbers = nearest_significant(weight.value.double() / scale, known.significant)
            return numbers.to(torch.int64), scale
        if bool((weight.zero_point != 0).any()):
            raise UnsupportedLayer(
                f"layer '{name}' has asymmetric weights (non-zero zero point), which hardware "
                "multiplies unshifted; use a symmetric weight quantizer."
            )
        scale = weight.scale.double()
        return (weight.value.double() / scale).round().to(torch.int64), weight.scale
