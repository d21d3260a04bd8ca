"""What FINN refuses, or accepts and gets wrong, found before the file is written.

Facts measured with finn-plus 1.6.1 and qonnx 1.0.0. Every refusal is one sentence with the name
of the layer and the way out; `target="qonnx"` skips those that concern FINN alone.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import onnx
import torch
from brevitas import nn as qnn
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from qonnx.core.modelwrapper import ModelWrapper
from torch import nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.layers import Layer, find_unquantized, integer_weight, layer_groups

TARGETS = ("finn", "qonnx")
_WIDEST = 8
_CURVED = (qnn.QuantSigmoid, qnn.QuantTanh, nn.Sigmoid, nn.Tanh, nn.GELU, nn.LayerNorm, nn.Softmax)


def check_model(
    model: nn.Module,
    layers: dict[str, Layer],
    calls: dict[str, list[InputRange | None]],
    target: str,
) -> None:
    """Raises ExportRefused for the first thing in a model that its target cannot take.

    Args:
        model: a Brevitas model.
        layers: its dot products, as `find_layers` gives them.
        calls: what arrives at them, as `observe_inputs` gives it.
        target: "finn" or "qonnx".
    """
    if target not in TARGETS:
        raise InvalidOption(f"export target '{target}' is unknown; choose 'finn' or 'qonnx'.")
    for name, layer in layers.items():
        if layer.weight.dtype != torch.float32:
            raise ExportRefused(
                f"layer '{name}' is in {layer.weight.dtype}, but QONNX computes in float32; "
                "convert the model by model.float() first."
            )
        integers, _ = integer_weight(name, layer)
        if not bool(integers.any()):
            raise ExportRefused(
                f"all weights of layer '{name}' are zero, which FINN cannot build; give it a "
                "wider accumulator or more weight bits."
            )
    if target == "finn":
        _check_layers(model, layers, calls)
        _check_activations(model)


def _check_layers(
    model: nn.Module, layers: dict[str, Layer], calls: dict[str, list[InputRange | None]]
) -> None:
    plain = find_unquantized(model)
    if plain:
        raise ExportRefused(
            f"layer '{plain[0]}' has no integer weights, so FINN cannot build it; quantize it "
            "(brevitas_axe.quantize does) or export with target='qonnx'."
        )
    for name, module in model.named_modules():
        if isinstance(module, _CURVED):
            raise ExportRefused(
                f"'{name}' is a {type(module).__name__}, which FINN cannot build; use ReLU, or "
                "export with target='qonnx'."
            )
    for name, layer in layers.items():
        groups, proxy = layer_groups(layer), layer.weight_quant
        if None in calls.get(name, ()):
            raise ExportRefused(
                f"the input of layer '{name}' is not quantized, so FINN would leave it in float; "
                "give it an input_quant or a quantized predecessor."
            )
        if groups not in (1, getattr(layer, "in_channels", 1)):
            raise ExportRefused(
                f"layer '{name}' is a grouped convolution ({groups} groups), and FINN builds only "
                "dense and depthwise ones; change groups, or export with target='qonnx'."
            )
        if isinstance(
            layer,
            (qnn.QuantConvTranspose1d, qnn.QuantConvTranspose2d, qnn.QuantConvTranspose3d),
        ):
            raise ExportRefused(
                f"layer '{name}' is a transposed convolution, which this FINN flow does not "
                "build; use upsampling and a convolution, or export with target='qonnx'."
            )
        bits = int(proxy.tensor_quant.msb_clamp_bit_width_impl())
        if bits > _WIDEST:
            raise ExportRefused(
                f"layer '{name}' has {bits}-bit weights, and FINN takes at most {_WIDEST}; lower "
                "weight_bit_width."
            )
        if bits > 1 and not proxy.is_narrow_range:
            raise ExportRefused(
                f"layer '{name}' has weights of full range, and FINN may flip their sign past it; "
                "use a narrow weight quantizer (narrow_range=True)."
            )


def _check_activations(model: nn.Module) -> None:
    for name, proxy in model.named_modules():
        if not isinstance(proxy, ActQuantProxyFromInjectorBase) or not proxy.is_quant_enabled:
            continue
        owner = name.rpartition(".")[0]
        quantizer: Layer = proxy
        scale, zero_point = quantizer.scale(), quantizer.zero_point()
        if zero_point is not None and bool((zero_point != 0).any()):
            raise ExportRefused(
                f"the activation quantizer of '{owner}' has a non-zero zero point, which FINN "
                "refuses; use a symmetric one (Int8ActPerTensorFloat, Uint8ActPerTensorFloat)."
            )
        if scale is not None and scale.numel() > 1:
            raise ExportRefused(
                f"the activation quantizer of '{owner}' has one scale per channel, and FINN "
                "would leave the next layer in float; use a per-tensor one."
            )
        if str(proxy.rounding_mode).upper() != "ROUND":
            raise ExportRefused(
                f"the activation quantizer of '{owner}' rounds by {proxy.rounding_mode}, which "
                "FINN accepts and gets wrong; use float_to_int_impl_type='round'."
            )
        if int(quantizer.bit_width()) > _WIDEST:
            raise ExportRefused(
                f"the activation quantizer of '{owner}' has {int(quantizer.bit_width())} bits, and "
                f"FINN takes at most {_WIDEST}; lower its bit_width."
            )


def check_file(proto: onnx.ModelProto, target: str) -> None:
    """Raises ExportRefused where two quantized branches meet in an Add with unequal scales."""
    if target != "finn":
        return
    wrapped = ModelWrapper(proto)
    for node in proto.graph.node:
        if node.op_type != "Add":
            continue
        producers = [wrapped.find_producer(name) for name in node.input]
        quantizers = [p for p in producers if p is not None and p.op_type == "Quant"]
        if len(quantizers) < len(producers):
            continue
        first, second = (initializer(wrapped, q.input[1]) for q in quantizers)
        if first is None or second is None or not np.array_equal(first, second):
            raise ExportRefused(
                f"the branches that meet in '{node.name}' have different scales, and FINN cannot "
                "add them as integers; give both one shared activation quantizer."
            )


def initializer(model: ModelWrapper, name: str) -> np.ndarray | None:
    """A constant of the file, None where the tensor is not one."""
    return cast("np.ndarray | None", model.get_initializer(name))
