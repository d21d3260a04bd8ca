"""Which function a Brevitas model was trained to compute: with its quantizers, or without.

After quantization-aware training the float weights are no model of their own: at 2 bits the net
without its quantizers computes something else, and a solve that follows it loses what training won.
A model whose quantizers were only calibrated is followed without them. Batch norms tell the two
apart, since the means and variances that they learned are those of the function that was trained.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.running import (
    Batch,
    copied,
    evaluating,
    first_input,
    float_twin,
    hooked,
    tensor_of,
)
from brevitas_axe.recipe import Function

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# The quantized function has to fit the norms by so much better; at 6 bits and more, where the two
# hardly differ, chance does not reach this.
_CLEARLY = 0.8
_LEAST_RATIO = 1e-4


@torch.no_grad()
def trained_function(model: nn.Module, batches: Sequence[Batch]) -> Function:
    """The function that fits the statistics of a model's batch norms; "float" where none tells.

    Args:
        model: has quantizers; not modified.
        batches: of calibration.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _NORMS) and module.track_running_stats and module.num_batches_tracked
    }
    if not norms:
        return "float"
    twin = float_twin(model)
    twins = {name: twin.get_submodule(name) for name in norms}
    quantized, unquantized = _distance(model, norms, batches), _distance(twin, twins, batches)
    return "quantized" if quantized < _CLEARLY * unquantized else "float"


def _distance(model: nn.Module, norms: Mapping[str, Any], batches: Sequence[Batch]) -> float:
    """Mean squared distance of the inputs' means and log variances from those of the norms."""
    seen: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in norms}

    def note(name: str, norm: Any, args: tuple, kwargs: dict) -> None:
        x = tensor_of(first_input(args, kwargs)).transpose(0, 1).flatten(1).double()
        seen[name].append((x.mean(1), x.square().mean(1)))

    with hooked(norms, before=note), evaluating(model):
        for args, kwargs in batches:
            model(*args, **kwargs)
    distances = []
    for name, moments in seen.items():
        if not moments:
            continue
        mean, square = (torch.stack(part).mean(0) for part in zip(*moments, strict=True))
        expected = norms[name].running_var.double().clamp(min=norms[name].eps)
        ratio = ((square - mean.square()) / expected).clamp(min=_LEAST_RATIO)
        shift = (mean - norms[name].running_mean.double()).square() / expected
        distances.append(float((shift + ratio.log().square()).mean()))
    return sum(distances) / len(distances) if distances else math.inf


def solved_and_followed(
    model: nn.Module, function: Function, exclude: tuple[str, ...] = ()
) -> tuple[nn.Module, nn.Module | None]:
    """The model to solve, and the one whose activations and outputs it is to keep near.

    Args:
        model: has quantizers; not modified.
        function: to follow.
        exclude: names of layers to leave alone.

    Returns:
        For "quantized" a copy whose float weights are the rounded ones, and the model itself; for
        "float" the model itself, and None, which stands for its float twin.
    """
    if function == "float":
        return model, None
    return _with_rounded_weights(model, exclude), model


@torch.no_grad()
def _with_rounded_weights(model: nn.Module, exclude: tuple[str, ...]) -> nn.Module:
    """A copy whose float weights are what the quantizers make of them.

    A layer whose integers would be others with these weights keeps its own, as with quantizers that
    normalize them.
    """
    rounded = copied(model)
    for name, layer in find_layers(rounded, exclude, tile_scales=True).items():
        before, own = integer_weight(name, layer)[0], layer.weight.detach().clone()
        layer.weight.copy_(layer.quant_weight().value)
        if not torch.equal(integer_weight(name, layer)[0], before):
            layer.weight.copy_(own)
    return rounded
