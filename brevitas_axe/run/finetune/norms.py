"""Batch norms beside layers with integer weights: new statistics, and folding."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from brevitas_axe.errors import EmptyCalibration, UnsupportedLayer
from brevitas_axe.model.apply.weights import (
    current_scale,
    is_power_of_two,
    is_shared_scale,
    write_solution,
)
from brevitas_axe.model.layers import Layer, find_layers, integer_weight, unroll_weight
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.running import evaluating, flow, tensor_of
from brevitas_axe.run.finetune.losses import on_device, run


@torch.no_grad()
def reestimate_batch_norms(model: nn.Module, batches: Iterable[Any]) -> nn.Module:
    """Replaces the running statistics of every batch norm by averages over batches, in place.

    Everything else runs in evaluation mode. Brevitas's `norm_correction_mode` is not used: it
    leaves the geometric mean of old and new variance, and the norms in training mode.

    Args:
        model: with integer weights, for instance after solving or training.
        batches: as for `finetune`; labels are not looked at.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    batches = list(batches)
    if not batches:
        raise EmptyCalibration("there is no batch to estimate batch norms from; give at least one.")
    with evaluating(model):
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over all batches
                norm.train()
            for batch in on_device(model, batches):
                run(model, batch)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    return model


@torch.no_grad()
def fold_batch_norms(model: nn.Module, args: tuple) -> nn.Module:
    """A copy for inference with its batch norms inside the layers before them.

    A channel's factor goes into its scale, and its sign into its integers, which keep their
    magnitudes, so that the proof stands. The float weights behind the integers are lost: fold
    after training.

    Args:
        model: with our quantizers, one float scale per channel, where there is a norm to fold.
        args: arguments of one forward, which shows what follows what.

    Raises:
        UnsupportedLayer: a scale that cannot take the factor, another quantizer, or a norm that is
            not the only reader of its layer.
    """
    folded = copy.deepcopy(model).eval()
    layers = find_layers(folded)
    before = tensor_of(folded(*args))
    norms = {n: module for n, module in folded.named_modules() if isinstance(module, _BatchNorm)}
    found = flow(folded, {**layers, **norms}, (args, {}))
    for norm, module in norms.items():
        name = found.giver(norm)
        if name not in layers:
            continue
        _fold(name, layers[name], module)
        folded.set_submodule(norm, nn.Identity())
    after = tensor_of(folded(*args))
    if not torch.allclose(before, after, rtol=1e-3, atol=1e-3 * float(before.abs().max())):
        raise UnsupportedLayer(
            "a batch norm is not the only reader of the layer before it, so folding changes what "
            "the model computes; leave the norms as they are, FINN takes them too."
        )
    return folded


def _fold(name: str, layer: Layer, norm: Any) -> None:
    is_ours = isinstance(layer.weight_quant, AccumulatorAwareWeightQuantProxy)
    if not is_ours or is_shared_scale(layer) or is_power_of_two(layer):
        raise UnsupportedLayer(
            f"layer '{name}' cannot take a batch norm into its scale; give it one of our "
            "quantizers with a float scale per channel (apply_plan does), or leave the norm."
        )
    gain = torch.ones_like(norm.running_var) if norm.weight is None else norm.weight
    factor = gain / (norm.running_var + norm.eps).sqrt()
    shift = torch.zeros_like(factor) if norm.bias is None else norm.bias
    bias = torch.zeros_like(factor) if layer.bias is None else layer.bias
    integers, _ = integer_weight(name, layer)
    scale = current_scale(layer)
    rows = factor.view(scale.shape)
    integers = unroll_weight(layer, integers) * rows.sign().to(torch.int64).unsqueeze(-1)
    # A channel whose gain is 0 has integers 0, and any scale.
    scale = torch.where(rows == 0, scale, scale * rows.abs())
    write_solution(name, layer, integers, scale, None)
    layer.bias = nn.Parameter((bias - norm.running_mean) * factor + shift)
