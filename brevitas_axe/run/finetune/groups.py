"""Learning rates that fit integers: a step is measured against the scale, not against 1."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from brevitas_axe.model.apply.ranges import is_logarithmic
from brevitas_axe.model.apply.weights import current_scale
from brevitas_axe.model.layers import Layer, find_layers
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.quantizers.a2q import a2q_kind, a2q_scale

# Learning rate of weights in units of their scale, per unit of the general rate: with 1e-3, a step
# of Adam is a hundredth of the distance between two integers. Scales change by the same fraction.
_STEPS_PER_SCALE = 10.0


def parameter_groups(
    model: nn.Module, learning_rate: float, scale_learning_rate: float | None = None
) -> list[dict[str, Any]]:
    """Parameters for an adaptive torch optimizer such as Adam.

    Under narrow accumulators solvers choose large scales, so that the same step in float could
    change all integers of one layer and none of another. Quantized weights therefore get
    10·learning_rate·scale, per layer, and scales the fraction `scale_learning_rate` of themselves.

    Args:
        model: a Brevitas model.
        learning_rate: of biases, norms and everything else as it is.
        scale_learning_rate: fraction by which a scale may change per step; None means
            10·learning_rate, as for weights.
    """
    default = _STEPS_PER_SCALE * learning_rate
    rate = default if scale_learning_rate is None else scale_learning_rate
    groups: list[dict[str, Any]] = []
    for layer in find_layers(model, tile_scales=True).values():
        if layer.weight.requires_grad:
            step = _STEPS_PER_SCALE * learning_rate * _mean_scale(layer)
            groups.append({"params": [layer.weight], "lr": step})
    for value, size in _scales(model):
        groups.append({"params": [value], "lr": rate * size, "weight_decay": 0.0})
    seen = {id(parameter) for group in groups for parameter in group["params"]}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    return [{"params": others, "lr": learning_rate}, *groups] if others else groups


def _mean_scale(layer: Layer) -> float:
    with torch.no_grad():
        if a2q_kind(layer) is not None:
            return float(a2q_scale(layer).mean())
        if isinstance(layer.weight_quant, AccumulatorAwareWeightQuantProxy):
            return float(current_scale(layer).mean())
        return float(layer.weight_quant.scale().mean())


def _scales(model: nn.Module) -> Iterator[tuple[nn.Parameter, float]]:
    """Learned scale parameters, each with the step that changes the scale by 100 %.

    The step is 1 where the parameter is a logarithm, else the parameter's own magnitude.
    """
    for name, module in model.named_modules():
        value = module._parameters.get("value")
        if "scaling_impl" not in name or value is None or not value.requires_grad:
            continue
        yield value, 1.0 if is_logarithmic(module) else float(value.detach().abs().mean())
