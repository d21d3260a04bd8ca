"""From an ordinary PyTorch model to a calibrated Brevitas model.

All of it is Brevitas's own: graph clean-up and batch-norm folding, activation and residual
quantizers, calibration. Models that cannot be traced are quantized layer by layer instead.
"""

from __future__ import annotations

import copy
import inspect
import io
import sys
import warnings
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr, suppress
from typing import Any

import numpy as np
import torch
from brevitas.graph.calibrate import calibration_mode
from brevitas.graph.quantize import LAYERWISE_COMPUTE_LAYER_MAP, layerwise_quantize
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from brevitas.quant import Uint8ActPerTensorFloat
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.errors import EmptyCalibration, InvalidOption, NonFiniteValues
from brevitas_axe.model.devices import building_for, device_of, moved
from brevitas_axe.model.layers import DOT_PRODUCTS
from brevitas_axe.model.on_graph import (
    lowest_inputs,
    missing_keys_ignored,
    quantized_graph,
    with_weights,
)
from brevitas_axe.model.percentiles import quick_percentiles
from brevitas_axe.model.plain import check_plainly_written, check_transposed, plain_classes
from brevitas_axe.model.quantizers import Int8WeightPerChannelFloatAXE
from brevitas_axe.model.rewrites import rewritten
from brevitas_axe.model.running import Batch, copied, shares_on_load
from brevitas_axe.model.transformer_layers import note_attention


def as_batches(calibration: Iterable[Any], model: nn.Module | None = None) -> list[Batch]:
    """Calibration data as (args, kwargs) of forwards.

    Args:
        calibration: iterable of tensors, of (input, label, ...) tuples as data loaders give
            them, or of dictionaries of keyword arguments.
        model: so many inputs as its forward requires are taken from the front of each tuple;
            without it, or where one is enough, only the first is used. Batches are moved to the
            accelerator of the model.

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
    return batches if model is None else moved(batches, device_of(model))


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
    fine_sums: bool = True,
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
        fine_sums: from 8 bits on, whether signed operands of a sum may have a bit more for their
            sign, and norms read what was not rounded for a sum. FINN builds neither.
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
    note_attention(plain, *batches[0])
    inputs: dict[str, Any] = {"input_bit_width": input_bit_width}
    # Brevitas names no device for its quantizers' buffers.
    with building_for(model):
        if input_quant is not None:
            inputs["input_quant"] = input_quant
            return _layer_by_layer(plain, weight, inputs, batches, progress, sys.stderr)
        return _by_graph(
            plain,
            weight,
            inputs,
            batches,
            progress,
            input_bits=input_bit_width,
            model_input_bits=model_input_bit_width,
            fine_sums=fine_sums,
        )


def _by_graph(
    model: nn.Module,
    weight: dict,
    inputs: dict,
    batches: Sequence[Batch],
    progress: bool,
    **activations: Any,
) -> nn.Module:
    """Quantized on the graph; where that fails, layer by layer, with a warning that says why."""
    graph, terminal = None, sys.stderr
    # torch.fx prints its own traceback where a graph does not run.
    with redirect_stderr(io.StringIO()), missing_keys_ignored():
        try:
            graph = rewritten(model, batches[0])
            quantized = quantized_graph(copied(graph), batches, weight, **activations)
            return _calibrated(quantized, batches, progress, terminal)
        except Exception as error:
            # Tracing may fail in many ways, some of which only appear when the graph runs.
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
    warnings.warn(
        f"{type(model).__name__} is quantized layer by layer, with plain numbers between its "
        f"layers, because its graph cannot be quantized as a whole: {reason}",
        stacklevel=3,
    )
    if graph is not None:
        with redirect_stderr(io.StringIO()), missing_keys_ignored(), suppress(Exception):
            return _layer_by_layer(graph, weight, inputs, batches, progress, terminal)
    return _layer_by_layer(model, weight, inputs, batches, progress, terminal)


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
    layer_map = with_weights(LAYERWISE_COMPUTE_LAYER_MAP, weight, inputs)
    quantized = layerwise_quantize(copied(model).eval(), layer_map)
    lowest = {} if "input_quant" in inputs else lowest_inputs(quantized, batches)
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
    model: nn.Module,
    batches: Sequence[Batch],
    progress: bool = False,
    terminal: Any = None,
    parts: Iterable[nn.Module] | None = None,
) -> None:
    """Collects activation ranges with Brevitas's calibration mode.

    Args:
        model: with Brevitas's quantizers.
        batches: see `as_batches`.
        progress: show a progress bar.
        terminal: stream of the bar; None for the standard error stream.
        parts: modules that are calibrated, with all that is inside them; None for the whole model.
    """
    scope = model if parts is None else nn.ModuleList(parts)
    # After calibration Brevitas restores a shared quantizer to its state at the second activation.
    observers: list[Any] = [m for m in model.modules() if hasattr(m, "observer_only")]
    observing = [part.observer_only for part in observers]
    bar = tqdm(batches, desc="calibration", disable=not progress, file=terminal)
    try:
        with torch.no_grad(), calibration_mode(scope), quick_percentiles(model):
            for args, kwargs in bar:
                model(*args, **kwargs)
    finally:
        for part, before in zip(observers, observing, strict=True):
            part.observer_only = before
