"""Penalty and initialization that bring float weights near their l1 budgets.

The projection in the quantizers then has less to change. The guarantee does not depend on either.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.model.apply.weights import current_scale, is_power_of_two, set_scale
from brevitas_axe.model.l1_ball import project_on_ball
from brevitas_axe.model.layers import Layer, find_layers, roll_weight, unroll_weight
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.proxies.projection import Budget, tiled
from brevitas_axe.model.quantizers.a2q import a2q_kind, a2q_norm, clip_a2q_norm
from brevitas_axe.model.running import observe_inputs

# log2 of the scale multiples that `ep_init` tries, the end excluded: from half to eight times.
_OCTAVES = (-1.0, 3.25)


def accumulator_penalty(model: nn.Module) -> Tensor:
    """How far the float rows exceed their budgets, summed over all layers, differentiable.

    For our quantizers, the l1 norm by which each tile (each sign of it, where inputs are unsigned)
    exceeds its budget at the present scale; for A2Q and A2Q+ the norm g above its bound
    (arXiv 2308.13504, Sec. 4.1). Add it to the loss, times a small weight such as 1e-3.

    Args:
        model: with accumulator-aware quantizers that have seen an input.

    Returns:
        Scalar, in units of the weights; 0 where everything fits.

    Raises:
        MissingInputQuantizer: a budget is not known before the first forward.
    """
    excesses = []
    for name, layer in find_layers(model, tile_scales=True).items():
        if a2q_kind(layer) is not None:
            found = a2q_norm(name, layer)
            excesses.append((found.norm - found.bound).relu().sum())
    for layer, budget in _budgeted_layers(model):
        rows, scale = _rows_and_scale(layer)
        tiles = tiled(rows, budget.tile_size_in(rows.shape[1]))
        room = (budget.bound / (budget.norm_cost + budget.imbalance_cost)) * scale.unsqueeze(-1)
        for norm in _norms(tiles, budget):
            excesses.append((norm - room).relu().sum())
    if not excesses:
        return next(model.parameters()).new_zeros(())
    return torch.stack([excess.float() for excess in excesses]).sum()


@torch.no_grad()
def ep_init(model: nn.Module, args: tuple, exclude: tuple[str, ...] = ()) -> nn.Module:
    """Starts training from float weights near the budgets, in place; call it after `apply_plan`.

    A2Q and A2Q+ get every float row projected on its l1 ball (EP-init, arXiv 2401.10432,
    Sec. 4.2). Our quantizers keep their float weights, whose order training still needs, and get
    the scales at which the projected integers are nearest to the weights: under a narrow budget,
    fewer and larger steps are better. A model that was solved by PTQ does not change.

    Args:
        model: with accumulator-aware quantizers.
        args: arguments of one forward, which shows the range of every input.
        exclude: names of layers to leave alone.
    """
    layers = find_layers(model, exclude)
    observe_inputs(model, layers, args)
    for name, layer in layers.items():
        if a2q_kind(layer) is not None:
            _project_rows(name, layer)
    for layer, _ in _budgeted_layers(model, exclude):
        _choose_scale(layer)
    return model


def _project_rows(name: str, layer: Layer) -> None:
    clip_a2q_norm(name, layer)
    found = a2q_norm(name, layer)
    rows = unroll_weight(layer, layer.weight)
    mean = rows.mean(-1, keepdim=True) if found.centred else torch.zeros_like(rows[..., :1])
    radius = found.bound.flatten().expand(rows.shape[0] * rows.shape[1]).view(mean.shape)
    layer.weight.copy_(roll_weight(layer, project_on_ball(rows - mean, radius) + mean))


def _choose_scale(layer: Layer) -> None:
    """Least squares between weights and projected integers, per scale, over a grid around it."""
    scaling = layer.weight_quant.tensor_quant.scaling_impl
    start, shape = current_scale(layer), scaling.value.shape
    # Scales without improvement keep their parameter bit for bit.
    best, least = scaling.value.clone(), _squared_errors(layer, shape)
    for octaves in torch.arange(*_OCTAVES, 1.0 if is_power_of_two(layer) else 0.25).tolist():
        wanted = (start * 2**octaves).flatten()
        set_scale(layer, wanted[: shape.numel()].view(shape))
        error = _squared_errors(layer, shape)
        best = torch.where(error < least, scaling.value, best)
        least = torch.minimum(error, least)
    scaling.value.copy_(best)


def _squared_errors(layer: Layer, shape: torch.Size) -> Tensor:
    """Squared error of the integers that a layer computes with, times their scale; per scale."""
    error = unroll_weight(layer, layer.quant_weight().value - layer.weight).square().sum(-1)
    return error.view(shape) if shape.numel() == error.numel() else error.sum().view(shape)


def _norms(tiles: Tensor, budget: Budget) -> Iterator[Tensor]:
    """What a tile's budget bounds: its l1 norm, or that of each sign."""
    if budget.one_sided:
        yield tiles.clamp(min=0).sum(-1, keepdim=True)
        yield -tiles.clamp(max=0).sum(-1, keepdim=True)
    else:
        cost = tiles.abs().sum(-1) * budget.norm_cost + tiles.sum(-1).abs() * budget.imbalance_cost
        yield cost.unsqueeze(-1) / (budget.norm_cost + budget.imbalance_cost)


def _budgeted_layers(
    model: nn.Module, exclude: tuple[str, ...] = ()
) -> Iterator[tuple[Layer, Budget]]:
    """Layers with one of our quantizers and an accumulator width, each with its budget."""
    for name, layer in find_layers(model, exclude, tile_scales=True).items():
        proxy = layer.weight_quant
        if not isinstance(proxy, AccumulatorAwareWeightQuantProxy):
            continue
        if proxy.accumulator_bit_width is None:
            continue
        if proxy.input_range is None:
            raise MissingInputQuantizer(
                f"the budget of layer '{name}' follows its input, and it has seen none yet; run "
                "one forward first, with quantized inputs."
            )
        width, tile = proxy.accumulator_bit_width, proxy.accumulator_tile_size
        yield layer, Budget(proxy.input_range, width, tile)


def _rows_and_scale(layer: Layer) -> tuple[Tensor, Tensor]:
    """Weights [rows, K] and their scale [rows, 1] or [rows, tiles], both differentiable."""
    rows = unroll_weight(layer, layer.weight).flatten(0, 1)
    quant = layer.weight_quant.tensor_quant
    threshold = quant.int_scaling_impl(quant.msb_clamp_bit_width_impl())
    scale = quant.scaling_impl(layer.weight, threshold).flatten()
    if layer.weight_quant.scale_tile is not None:
        return rows, scale.view(len(rows), -1)
    return rows, scale.expand(len(rows)).unsqueeze(-1)
