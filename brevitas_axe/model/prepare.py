"""From an ordinary PyTorch model to a calibrated Brevitas model.

All of it is Brevitas's own: graph clean-up and batch-norm folding, activation and residual
quantizers, calibration. Models that cannot be traced are quantized layer by layer instead.
"""

from __future__ import annotations

import copy
import inspect
import io
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from brevitas import config
from brevitas import nn as qnn
from brevitas.graph import quantize_impl
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import (
    COMPUTE_LAYER_MAP,
    LAYERWISE_COMPUTE_LAYER_MAP,
    QUANT_ACT_MAP,
    QUANT_IDENTITY_MAP,
    layerwise_quantize,
)
from brevitas.graph.quantize import quantize as brevitas_quantize
from brevitas.graph.standardize import DisableLastReturnQuantTensor
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from brevitas.quant import Uint8ActPerTensorFloat
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.errors import EmptyCalibration, InvalidOption, NonFiniteValues, UnsupportedLayer
from brevitas_axe.model.layers import DOT_PRODUCTS, find_unquantized
from brevitas_axe.model.plain import check_plainly_written, check_transposed, plain_classes
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.model.quantizers.relu6 import QuantReLU6
from brevitas_axe.model.rewrites import Graph, differ, rewritten, tensors_in
from brevitas_axe.model.running import (
    Batch,
    copied,
    first_input,
    float_twin,
    shares_on_load,
    tensor_of,
)

_RECURRENT = (nn.LSTM, nn.RNN)
# Largest difference by rounding between outputs with quantizers off and the model's, relative to
# the largest output.
_FLOAT_CHANGE = 1e-2
_ACTIVATIONS = {
    **QUANT_ACT_MAP,
    # Brevitas would make a ReLU of it, or fix its range at 6 for any input.
    nn.ReLU6: (QuantReLU6, {"act_quant": Uint8ActPerTensorFloat, "return_quant_tensor": True}),
}


def as_batches(calibration: Iterable[Any], model: nn.Module | None = None) -> list[Batch]:
    """Calibration data as (args, kwargs) of forwards.

    Args:
        calibration: iterable of tensors, of (input, label, ...) tuples as data loaders give
            them, or of dictionaries of keyword arguments.
        model: so many inputs as its forward requires are taken from the front of each tuple;
            without it, or where one is enough, only the first is used.

    Raises:
        EmptyCalibration: there is no batch.
        NonFiniteValues: a batch contains NaN or infinity.
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
    inputs = _demanded(model)
    for index, item in enumerate(items):
        if isinstance(item, dict):
            batch: Batch = ((), item)
        elif isinstance(item, (tuple, list)):
            batch = (tuple(item[:inputs]), {})
        else:
            batch = ((item,), {})
        if batch == ((), {}):
            raise EmptyCalibration(f"calibration batch {index} is empty; leave it out.")
        for value in (*batch[0], *batch[1].values()):
            if isinstance(value, np.ndarray):
                raise InvalidOption(
                    f"calibration batch {index} is a numpy array; give tensors, as by "
                    "torch.from_numpy(batch).float()."
                )
            if not isinstance(value, Tensor):
                continue
            if value.numel() == 0:
                raise EmptyCalibration(f"calibration batch {index} is empty; leave it out.")
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise NonFiniteValues(f"calibration batch {index} contains NaN or infinity.")
        batches.append(batch)
    if not batches:
        raise EmptyCalibration("the calibration data has no batch; give at least one.")
    return batches


def _demanded(model: nn.Module | None) -> int:
    """Number of inputs that a model's forward requires, at least 1."""
    if model is None:
        return 1
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return 1
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return max(1, sum(p.kind in positional and p.default is p.empty for p in parameters))


def one_sample(batch: Batch) -> Batch:
    """The first sample of a batch: costs are per sample, and FINN builds for one."""

    def first(value: Any) -> Any:
        return value[:1] if getattr(value, "ndim", 0) else value

    args, kwargs = batch
    return tuple(map(first, args)), {key: first(value) for key, value in kwargs.items()}


def has_quantizers(model: nn.Module) -> bool:
    """True for a model that already has Brevitas layers."""
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
    if weight_bit_width < 2:
        raise InvalidOption(
            f"weights need 2 bits or more, not {weight_bit_width}, to be integers of both signs."
        )
    check_plainly_written(model)
    check_transposed(model, weight_quant)
    weight = {"weight_quant": weight_quant, "weight_bit_width": weight_bit_width}
    plain = plain_classes(copy.deepcopy(model)).eval()
    graph, terminal = None, sys.stderr
    inputs: dict[str, Any] = {"input_bit_width": input_bit_width}
    if input_quant is not None:
        inputs["input_quant"] = input_quant
        return _layer_by_layer(plain, weight, inputs, batches, progress, terminal)
    # torch.fx prints its own traceback where a graph does not run.
    with redirect_stderr(io.StringIO()), _settings_kept():
        try:
            graph = rewritten(plain, batches[0])
            quantized = _on_graph(
                copied(graph), batches, weight, input_bit_width, model_input_bit_width
            )
            return _calibrated(quantized, batches, progress, terminal)
        except Exception as error:
            # Tracing may fail in many ways, some of which only appear when the graph runs.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    warnings.warn(
        f"{type(model).__name__} is quantized layer by layer, with plain numbers between its "
        f"layers, because its graph cannot be quantized as a whole: {reason}",
        stacklevel=2,
    )
    if graph is not None:
        with redirect_stderr(io.StringIO()), _settings_kept(), suppress(Exception):
            return _layer_by_layer(graph, weight, inputs, batches, progress, terminal)
    return _layer_by_layer(plain, weight, inputs, batches, progress, terminal)


@contextmanager
def _settings_kept() -> Iterator[None]:
    """Context that restores a setting which Brevitas leaves changed where it fails."""
    before = config.IGNORE_MISSING_KEYS
    try:
        yield
    finally:
        config.IGNORE_MISSING_KEYS = before


def _on_graph(
    graph: Graph, batches: Sequence[Batch], weight: dict, input_bits: int, model_input_bits: int
) -> nn.Module:
    """Brevitas's graph quantization; with quantizers off it must compute the same as the graph."""
    sample = batches[0]
    with torch.no_grad():
        expected = tensors_in(graph(*sample[0], **sample[1]))
    # Brevitas aligns scales up to 9,999 times where sums of sums have no solution.
    with patch.object(quantize_impl, "MAX_RESIDUAL_ITERS", len(graph.graph.nodes) + 50):
        quantized = brevitas_quantize(
            graph,
            quant_identity_map=_with_bits(QUANT_IDENTITY_MAP, input_bits),
            compute_layer_map=_with_weights(COMPUTE_LAYER_MAP, weight, {}),
            quant_act_map=_with_bits(_ACTIVATIONS, input_bits),
        )
    lowest = _lowest_inputs(quantized, batches)
    _fit_ends(quantized, lowest, model_input_bits)
    _fit_signs(quantized, lowest, input_bits)
    with torch.no_grad():
        outputs = tensors_in(float_twin(quantized)(*sample[0], **sample[1]))
    left = find_unquantized(quantized)
    if left:
        raise UnsupportedLayer(f"layer '{left[0]}' is inside a module that tracing takes as one")
    hard = any(isinstance(m, qnn.QuantHardTanh) for m in quantized.modules())  # clips by quantizing
    if not hard and differ(expected, outputs) > _FLOAT_CHANGE:
        raise UnsupportedLayer("Brevitas's quantized graph computes another function")
    return quantized


def _layer_by_layer(
    model: nn.Module,
    weight: dict,
    inputs: dict,
    batches: Sequence[Batch],
    progress: bool,
    terminal: Any,
) -> nn.Module:
    """A copy with a quantizer in front of every layer, calibrated.

    Where none was chosen, it is unsigned at layers whose inputs are never negative.
    """
    layer_map = _with_weights(LAYERWISE_COMPUTE_LAYER_MAP, weight, inputs)
    quantized = layerwise_quantize(copied(model).eval(), layer_map)
    lowest = {} if "input_quant" in inputs else _lowest_inputs(quantized, batches)
    quantizer: Any = Uint8ActPerTensorFloat
    for name, module in quantized.named_modules():
        part: Any = module
        proxy: Any = getattr(module, "input_quant", None)
        if isinstance(module, DOT_PRODUCTS) and lowest.get(name, -1.0) >= 0 and proxy.is_signed:
            unsigned = quantizer.let(bit_width=inputs["input_bit_width"])
            part.input_quant = ActQuantProxyFromInjector(module, unsigned)
    return _calibrated(quantized, batches, progress, terminal)


def _calibrated(
    model: nn.Module, batches: Sequence[Batch], progress: bool, terminal: Any = None
) -> nn.Module:
    """The model in evaluation mode, calibrated; one forward shows that it runs."""
    model.eval()
    calibrate(model, batches, progress, terminal)
    args, kwargs = batches[0]
    with torch.no_grad():
        model(*args, **kwargs)
    return shares_on_load(model)


def calibrate(
    model: nn.Module, batches: Sequence[Batch], progress: bool = False, terminal: Any = None
) -> None:
    """Collects activation ranges with Brevitas's calibration mode.

    Args:
        model: with Brevitas's quantizers.
        batches: see `as_batches`.
        progress: show a progress bar.
        terminal: stream of the bar; None for the standard error stream.
    """
    # After calibration Brevitas restores a shared quantizer to its state at the second activation.
    parts: list[Any] = [m for m in model.modules() if hasattr(m, "observer_only")]
    observing = [part.observer_only for part in parts]
    bar = tqdm(batches, desc="calibration", disable=not progress, file=terminal)
    try:
        with torch.no_grad(), calibration_mode(model):
            for args, kwargs in bar:
                model(*args, **kwargs)
    finally:
        for part, before in zip(parts, observing, strict=True):
            part.observer_only = before


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


def _lowest_inputs(model: nn.Module, batches: Sequence[Batch]) -> dict[str, float]:
    """The lowest number in the input of each module while every quantizer is off."""
    twin = float_twin(model)
    lowest: dict[str, float] = {}

    def note(name: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            x = tensor_of(first_input(args, kwargs)) if args or kwargs else None
            if isinstance(x, Tensor) and x.numel():
                lowest[name] = min(lowest.get(name, math.inf), float(x.min()))

        return hook

    for name, module in twin.named_modules():
        if hasattr(module, "input_quant") or hasattr(module, "act_quant"):
            module.register_forward_pre_hook(note(name), with_kwargs=True)
    with torch.no_grad():
        for args, kwargs in batches:
            twin(*args, **kwargs)
    return lowest


def _fit_ends(model: Graph, lowest: dict[str, float], input_bits: int) -> None:
    """Makes model inputs unsigned where no sample is negative, and all outputs plain tensors."""
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not isinstance(
            model.get_submodule(node.target), qnn.QuantIdentity
        ):
            continue
        if node.args[0].op == "placeholder":
            kind = {"bit_width": input_bits, "return_quant_tensor": True}
            if lowest.get(node.target, -1.0) >= 0:
                kind["act_quant"] = Uint8ActPerTensorFloat
            model.set_submodule(node.target, qnn.QuantIdentity(**kind))
        elif all(user.op == "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            model.graph.erase_node(node)
    (end,) = (node for node in model.graph.nodes if node.op == "output")
    last = end.args[0]
    module = model.get_submodule(last.target) if getattr(last, "op", "") == "call_module" else None
    if not hasattr(module, "return_quant_tensor"):  # nested, or not a layer: a sum, a slice
        for node in list(end.all_input_nodes):
            with model.graph.inserting_before(end):
                end.replace_input_with(node, model.graph.call_function(tensor_of, (node,)))
    model.recompile()
    model.delete_all_unused_submodules()
    DisableLastReturnQuantTensor().apply(model)


def _fit_signs(model: Graph, lowest: dict[str, float], bits: int) -> None:
    """Makes quantizers in front of layers unsigned where their inputs are never negative.

    Brevitas's are always signed behind pooling. Quantizers that residual branches share, to align
    their scales, are not changed.
    """
    shared = Counter(id(part) for module in model.modules() for part in _scaling_parts(module))
    for node in model.graph.nodes:
        module = model.get_submodule(node.target) if node.op == "call_module" else None
        if not isinstance(module, qnn.QuantIdentity) or node.args[0].op == "placeholder":
            continue
        alone = all(shared[id(part)] == 1 for part in _scaling_parts(module))
        if alone and module.act_quant.is_signed and lowest.get(node.target, -1.0) >= 0:
            kind = {"act_quant": Uint8ActPerTensorFloat, "bit_width": bits}
            unsigned = qnn.QuantIdentity(**kind, return_quant_tensor=module.return_quant_tensor)
            model.set_submodule(node.target, unsigned)


def _scaling_parts(module: nn.Module) -> tuple[Any, ...]:
    """What an activation quantizer may share with others."""
    proxy: Any = getattr(module, "act_quant", None)
    quant = getattr(getattr(proxy, "fused_activation_quant_proxy", None), "tensor_quant", None)
    return () if quant is None else (quant, quant.scaling_impl)
