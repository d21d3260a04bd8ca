"""Mends what can be mended safely in a live Brevitas model, and lists what was done.

Three mends. Residual branches get the wider of their two quantizers, weights of full range lose
their most negative integer, and sums move by a part of their step so that none lies halfway between
two output levels, not even up to float rounding: FINN and torch then agree everywhere. The first
two change the model's values a little, so mend before post-training quantization; the third depends
on the integers, so mend again after it.
"""

from __future__ import annotations

import copy
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from brevitas import nn as qnn
from brevitas.nn.quant_layer import QuantNonLinearActLayer
from torch import Tensor, nn

from brevitas_axe.export.finn.check import walk
from brevitas_axe.export.finn.signal import Graph
from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.model.layers import Layer, find_layers
from brevitas_axe.model.offset import Offset

_ROUNDS = 8


@dataclass(frozen=True)
class Mending:
    """One change that was made for FINN.

    Attributes:
        layer: name of the module that was changed.
        rule: rule of the finding that it resolves.
        sentence: what was done.
    """

    layer: str
    rule: str
    sentence: str


def mend_for_finn(model: nn.Module, args: Tensor | tuple) -> tuple[nn.Module, list[Mending]]:
    """Mends a calibrated Brevitas model where that is safe.

    Args:
        model: a Brevitas model; not modified.
        args: example input(s) of the forward.

    Returns:
        (mended copy, changes). `check_finn` reports what could not be mended.
    """
    mended, changes = copy.deepcopy(model).eval(), []
    # One change can expose another, such as ties behind branches that had to be shared.
    for _ in range(_ROUNDS):
        graph = _graph(mended, args)
        done = [*_share(mended, graph), *_narrow(mended, graph)] or _shift(mended, graph)
        changes.extend(done)
        if not done:
            break
    return mended, changes


def _graph(model: nn.Module, args: Tensor | tuple) -> Graph:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_qonnx(model, args, path, target="qonnx")
        return walk(path)


def _share(model: nn.Module, graph: Graph) -> list[Mending]:
    """One quantizer for both branches of an addition: the one with the wider range."""
    changes = []
    for left, right in graph.unequal:
        quantizers: list[Any] = [dict(model.named_modules()).get(name) for name in (left, right)]
        if not all(isinstance(q, qnn.QuantIdentity) for q in quantizers):
            continue  # behind a ReLU no other quantizer fits, as it has no negative values
        names = sorted((left, right), key=lambda n: _largest_magnitude(model.get_submodule(n)))
        kinds = {bool(q.act_quant.is_signed) for q in quantizers}
        if len(kinds) > 1:
            continue
        model.set_submodule(names[0], model.get_submodule(names[1]))
        sentence = f"'{names[0]}' is now the same quantizer as '{names[1]}'."
        changes.append(Mending(names[0], "branches", sentence))
    return changes


def _largest_magnitude(quantizer: Any) -> float:
    """Largest magnitude that an activation quantizer represents."""
    proxy = quantizer.act_quant
    return float(proxy.scale()) * 2 ** (float(proxy.bit_width()) - bool(proxy.is_signed))


def _narrow(model: nn.Module, graph: Graph) -> list[Mending]:
    """Removes the most negative integer of weights, whose sign FINN could not flip."""
    changes = []
    names = {finding.layer for finding in graph.findings if finding.rule == "full_range"}
    for name, layer in find_layers(model).items():
        if name not in names:
            continue
        proxy = layer.weight_quant
        learned = proxy.tensor_quant.state_dict()
        proxy.quant_injector = proxy.quant_injector.let(narrow_range=True)
        proxy.init_tensor_quant()
        proxy.tensor_quant.load_state_dict(learned)
        changes.append(Mending(name, "full_range", f"the weights of '{name}' are now narrow."))
    return changes


def _shift(model: nn.Module, graph: Graph) -> list[Mending]:
    """Moves sums away from the halfway points between two levels; nothing else changes."""
    changes, layers = [], find_layers(model)
    for name, (signal, ties) in graph.ties.items():
        shift = np.nan_to_num(ties.shift)  # no shift where another sum would cross a level
        if not shift.any():
            continue
        layer = layers.get(name)
        if signal.dot is not None:
            if layer is None or (layer.bias is not None and layer.bias_quant.is_quant_enabled):
                continue  # a quantized bias would be rounded to its old value
            _move_bias(layer, shift * signal.dot.scale)
            what = f"the bias of '{name}'"
        else:
            if graph.quantizations(name) != 1 or not _is_activation(model, name):
                continue  # it would also move the quantizer's other input
            offset = Offset(torch.from_numpy(np.asarray(shift * signal.scale, np.float32)))
            model.set_submodule(name, nn.Sequential(offset, model.get_submodule(name)))
            what = f"the input of '{name}'"
        part = float(np.abs(shift).max())
        changes.append(Mending(name, "tie", f"{what} moved by up to {part:g} of its step."))
    return changes


def _move_bias(layer: Layer, shift: np.ndarray) -> None:
    """Adds a shift, of each output channel or of all, to the bias; creates a missing bias."""
    rows = layer.weight.shape[0]
    moved = torch.from_numpy(np.broadcast_to(shift.reshape(-1), (rows,)).astype(np.float32))
    with torch.no_grad():
        layer.bias = nn.Parameter(moved if layer.bias is None else layer.bias + moved)


def _is_activation(model: nn.Module, name: str) -> bool:
    return isinstance(dict(model.named_modules()).get(name), QuantNonLinearActLayer)
