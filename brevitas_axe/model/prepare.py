"""From an ordinary PyTorch model to a calibrated Brevitas model.

All of it is Brevitas's own: graph clean-up and batch-norm folding, activation and residual
quantizers, calibration. Models that cannot be traced are quantized layer by layer instead.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

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
from brevitas.inject.enum import ScalingPerOutputType
from brevitas.quant import Uint8ActPerTensorFloat
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd
from tqdm.auto import tqdm

from brevitas_axe.errors import EmptyCalibration, InvalidOption, NonFiniteValues, UnsupportedLayer
from brevitas_axe.model.layers import DOT_PRODUCTS
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE

Batch = tuple[tuple, dict]
# A GraphModule or Node, of torch.fx or of Brevitas's copy of it; arguments of nodes are anything.
Graph = Any
_RELUS = ("relu", "relu_", torch.relu, torch.relu_)
_RECURRENT = (nn.LSTM, nn.RNN)


def as_batches(calibration: Iterable[Any]) -> list[Batch]:
    """Calibration data as (args, kwargs) of forwards.

    Args:
        calibration: iterable of tensors, of (input, label, ...) tuples as data loaders give
            them (only the input is used), or of dictionaries of keyword arguments.

    Raises:
        EmptyCalibration: there is no batch.
        NonFiniteValues: a batch holds NaN or infinity.
    """
    batches: list[Batch] = []
    if isinstance(calibration, Tensor):
        raise InvalidOption("calibration data is one tensor; give a list of batches, such as [x].")
    try:
        items = list(calibration)
    except TypeError:
        raise InvalidOption(
            "calibration data must be an iterable of batches, such as a DataLoader or a list."
        ) from None
    for index, item in enumerate(items):
        if isinstance(item, dict):
            batch: Batch = ((), item)
        elif isinstance(item, (tuple, list)):
            batch = (tuple(item[:1]), {})
        else:
            batch = ((item,), {})
        if batch == ((), {}):
            raise EmptyCalibration(f"calibration batch {index} is empty; leave it out.")
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


def one_sample(batch: Batch) -> Batch:
    """The first sample of a batch: costs are per sample, and FINN builds for one."""

    def first(value: Any) -> Any:
        return value[:1] if getattr(value, "ndim", 0) else value

    args, kwargs = batch
    return tuple(map(first, args)), {key: first(value) for key, value in kwargs.items()}


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
    input_quant: type | None = None,
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
        input_quant: Brevitas quantizer in front of every layer; None for calibrated ones that
            layers share where the model can be traced.
        progress: show a progress bar over calibration batches.

    Returns:
        A Brevitas model in evaluation mode.

    Raises:
        UnsupportedLayer: a layer that Brevitas cannot give this weight quantizer.
    """
    _check_transposed(model, weight_quant)
    weight = {"weight_quant": weight_quant, "weight_bit_width": weight_bit_width}
    inputs: dict[str, Any] = {"input_bit_width": input_bit_width}
    if input_quant is not None:
        inputs["input_quant"] = input_quant
        return _layer_by_layer(model, weight, inputs, batches, progress)
    try:
        quantized = _spelled_for_brevitas(_traced(copy.deepcopy(model).eval()))
        quantized = brevitas_quantize(
            quantized,
            quant_identity_map=_with_bits(QUANT_IDENTITY_MAP, input_bit_width),
            compute_layer_map=_with_weights(COMPUTE_LAYER_MAP, weight, {}),
            quant_act_map=_with_bits(QUANT_ACT_MAP, input_bit_width),
        )
        _fit_ends(quantized, batches, model_input_bit_width)
        return _calibrated(quantized, batches, progress)
    except Exception:
        # Tracing breaks Python code in many ways, some of which show only when the graph runs.
        return _layer_by_layer(model, weight, inputs, batches, progress)


def _layer_by_layer(
    model: nn.Module, weight: dict, inputs: dict, batches: Sequence[Batch], progress: bool
) -> nn.Module:
    """A copy with a quantizer in front of every layer, calibrated."""
    layer_map = _with_weights(LAYERWISE_COMPUTE_LAYER_MAP, weight, inputs)
    return _calibrated(
        layerwise_quantize(copy.deepcopy(model).eval(), layer_map), batches, progress
    )


def _check_transposed(model: nn.Module, weight_quant: type) -> None:
    """Brevitas 0.12 takes the groups of a transposed convolution for one when it shapes scales."""
    kind: Any = weight_quant
    per_tensor = getattr(kind, "scaling_per_output_type", None) == ScalingPerOutputType.TENSOR
    for name, module in model.named_modules():
        if isinstance(module, _ConvTransposeNd) and module.groups > 1 and not per_tensor:
            raise UnsupportedLayer(
                f"layer '{name}' is a transposed convolution in {module.groups} groups, which "
                "Brevitas cannot give a weight scale per channel; make it a Brevitas layer with "
                "Int8WeightPerTensorFloatAXE, or write it as one group."
            )


def _calibrated(model: nn.Module, batches: Sequence[Batch], progress: bool) -> nn.Module:
    """Evaluation mode, calibrated, and seen to run."""
    model.eval()
    calibrate(model, batches, progress)
    args, kwargs = batches[0]
    with torch.no_grad():
        model(*args, **kwargs)
    return model


def calibrate(model: nn.Module, batches: Sequence[Batch], progress: bool = False) -> None:
    """Collects activation ranges with Brevitas's calibration mode."""
    bar = tqdm(batches, desc="calibration", disable=not progress)
    with torch.no_grad(), calibration_mode(model):
        for args, kwargs in bar:
            model(*args, **kwargs)


def _traced(model: nn.Module) -> Graph:
    """The graph of a model, cleaned by Brevitas, batch norms folded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.fx's own deprecations inside Brevitas
        return preprocess_for_quantize(model)


def _spelled_for_brevitas(model: Graph) -> Graph:
    """Rewrites what Brevitas does not read, x.relu() and torch.relu(x), or reads amiss.

    It would quantize again after a Flatten, signed, and so lose a bit of what a ReLU gave.
    """
    for node in list(model.graph.nodes):
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        with model.graph.inserting_before(node):
            if node.op != "call_module" and node.target in _RELUS:
                model.add_submodule(f"{node.name}_module", nn.ReLU())
                new = model.graph.call_module(f"{node.name}_module", node.args[:1])
            elif isinstance(module, nn.Flatten):
                dims = (module.start_dim, module.end_dim)
                new = model.graph.call_function(torch.flatten, (node.args[0], *dims))
            elif _flattens(node):
                new = model.graph.call_function(torch.flatten, (node.args[0], 1))
            else:
                continue
        node.replace_all_uses_with(new)
        model.graph.erase_node(node)
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def _flattens(node: Graph) -> bool:
    """True for x.view(x.shape[0], -1), x.reshape(x.size(0), -1) and the like."""
    if node.op != "call_method" or node.target not in ("view", "reshape") or len(node.args) != 3:
        return False
    x, size, rest = node.args
    kind = getattr(size, "op", None)  # a number has none
    if rest != -1 or kind is None:
        return False
    if kind == "call_method":
        return size.target == "size" and size.args == (x, 0)
    if size.target is not operator.getitem or size.args[1] != 0:
        return False
    return size.args[0].target in (getattr, "size") and size.args[0].args in ((x, "shape"), (x,))


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


def _fit_ends(model: Graph, batches: Sequence[Batch], input_bits: int) -> None:
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
