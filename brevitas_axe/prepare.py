"""From an ordinary PyTorch model to a calibrated Brevitas model.

All of it is Brevitas's own: graph clean-up and batch-norm folding, activation and residual
quantizers, calibration. Models that cannot be traced are quantized layer by layer instead.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import torch
from brevitas import nn as qnn
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import (
    COMPUTE_LAYER_MAP,
    LAYERWISE_COMPUTE_LAYER_MAP,
    QUANT_ACT_MAP,
    QUANT_IDENTITY_MAP,
    layerwise_quantize,
    preprocess_for_quantize,
)
from brevitas.graph.quantize import quantize as brevitas_quantize
from brevitas.graph.standardize import DisableLastReturnQuantTensor
from brevitas.quant import Uint8ActPerTensorFloat
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.errors import EmptyCalibration, InvalidOption, NonFiniteValues
from brevitas_axe.layers import DOT_PRODUCTS
from brevitas_axe.quantizers import Int8WeightPerChannelFloatAXE

Batch = tuple[tuple, dict]
_RECURRENT = (nn.LSTM, nn.RNN)


def as_batches(calibration: object) -> list[Batch]:
    """Calibration data as (args, kwargs) of forwards.

    Args:
        calibration: iterable of tensors, of (input, label, ...) tuples as data loaders give
            them (only the input is used), or of dictionaries of keyword arguments.

    Raises:
        EmptyCalibration: there is no batch.
        NonFiniteValues: a batch holds NaN or infinity.
    """
    batches: list[Batch] = []
    try:
        items = list(calibration)  # type: ignore[call-overload]
    except TypeError:
        raise InvalidOption(
            "calibration data must be an iterable of batches, such as a DataLoader or a list."
        ) from None
    for index, item in enumerate(items):
        if isinstance(item, dict):
            batch: Batch = ((), item)
        else:
            batch = ((item[0] if isinstance(item, (tuple, list)) else item,), {})
        for value in (*batch[0], *batch[1].values()):
            if not isinstance(value, Tensor):
                continue
            if value.numel() == 0:
                raise EmptyCalibration(f"calibration batch {index} is empty; leave it out.")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NonFiniteValues(f"calibration batch {index} holds NaN or infinity.")
        batches.append(batch)
    if not batches:
        raise EmptyCalibration("the calibration data has no batch; give at least one.")
    return batches


def has_quantizers(model: nn.Module) -> bool:
    """True for a model that already holds Brevitas layers."""
    return any(isinstance(module, DOT_PRODUCTS) for module in model.modules())


def to_brevitas(
    model: nn.Module,
    batches: Sequence[Batch],
    *,
    weight_bit_width: int = 4,
    input_bit_width: int = 8,
    model_input_bit_width: int = 8,
    weight_quant: type = Int8WeightPerChannelFloatAXE,
    progress: bool = False,
) -> nn.Module:
    """Quantizes a plain PyTorch model with Brevitas and calibrates its activations.

    Args:
        model: a plain model; not modified.
        batches: calibration batches, see `as_batches`.
        weight_bit_width: bits of all weights.
        input_bit_width: bits of all activations but the model's input.
        model_input_bit_width: bits of the model's input.
        weight_quant: Brevitas weight quantizer.
        progress: show a progress bar over calibration batches.

    Returns:
        A Brevitas model in evaluation mode.
    """
    model = copy.deepcopy(model).eval()
    weight = {"weight_quant": weight_quant, "weight_bit_width": weight_bit_width}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.fx's own deprecations inside Brevitas
            quantized = brevitas_quantize(
                preprocess_for_quantize(model),
                quant_identity_map=_with_bits(QUANT_IDENTITY_MAP, input_bit_width),
                compute_layer_map=_with_weights(COMPUTE_LAYER_MAP, weight, {}),
                quant_act_map=_with_bits(QUANT_ACT_MAP, input_bit_width),
            )
        _fit_ends(quantized, batches, model_input_bit_width)
    except torch.fx.proxy.TraceError:
        inputs = {"input_bit_width": input_bit_width}
        quantized = layerwise_quantize(
            model, _with_weights(LAYERWISE_COMPUTE_LAYER_MAP, weight, inputs)
        )
    quantized.eval()
    calibrate(quantized, batches, progress)
    return quantized


def calibrate(model: nn.Module, batches: Sequence[Batch], progress: bool = False) -> None:
    """Collects activation ranges with Brevitas's calibration mode."""
    bar = tqdm(batches, desc="calibration", disable=not progress)
    with torch.no_grad(), calibration_mode(model):
        for args, kwargs in bar:
            model(*args, **kwargs)


def _with_bits(layer_map: dict, bits: int) -> dict:
    return {
        kind: None if entry is None else (entry[0], {**entry[1], "bit_width": bits})
        for kind, entry in layer_map.items()
    }


def _with_weights(layer_map: dict, weight: dict, inputs: dict) -> dict:
    """Brevitas's layer map with our weights, float biases and without recurrent layers."""
    result = {}
    for kind, entry in layer_map.items():
        if kind in _RECURRENT:
            continue
        if entry is None:
            result[kind] = None
        elif kind is nn.MultiheadAttention:
            parts = {
                f"{part}_{key}": value
                for part in ("in_proj", "out_proj")
                for key, value in {**weight, **inputs, "bias_quant": None}.items()
            }
            result[kind] = (entry[0], {**entry[1], **parts})
        else:
            result[kind] = (entry[0], {**entry[1], **weight, **inputs, "bias_quant": None})
    return result


def _fit_ends(model: torch.fx.GraphModule, batches: Sequence[Batch], input_bits: int) -> None:
    """Unsigned model inputs where no sample is negative; no quantizer behind the last layer."""
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not isinstance(
            model.get_submodule(node.target), qnn.QuantIdentity
        ):
            continue
        if node.args[0].op == "placeholder":
            position = [n.name for n in model.graph.nodes if n.op == "placeholder"].index(
                node.args[0].name
            )
            values = [(*a, *k.values())[position] for a, k in batches]
            kind = {"bit_width": input_bits, "return_quant_tensor": True}
            if all(bool((value >= 0).all()) for value in values):
                kind["act_quant"] = Uint8ActPerTensorFloat
            model.set_submodule(node.target, qnn.QuantIdentity(**kind))
        elif all(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    model.recompile()
    model.delete_all_unused_submodules()
    DisableLastReturnQuantTensor().apply(model)
