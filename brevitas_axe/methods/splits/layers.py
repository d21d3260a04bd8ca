"""Puts branches in the place of a model's linear layers."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.splits.protocol import Branch, Split
from brevitas_axe.model.branches import BranchedLinear, Part
from brevitas_axe.model.layers import Layer, find_unquantized
from brevitas_axe.model.prepare import Batch, as_batches
from brevitas_axe.model.running import evaluating, first_input, hooked
from brevitas_axe.plan import LayerPrecision, Plan

_ROOT = "model"
# Input vectors of a layer in a split's sample, besides the largest of every channel.
SAMPLE_ROWS = 512
# Bits of a float layer's weights and inputs where the plan gives none.
_OPEN_BITS = 8


def branched(linear: nn.Linear, branches: Sequence[Branch]) -> BranchedLinear:
    """The branches as layers of a model; the first one takes the bias."""
    parts: dict[str, Part] = {}
    for branch in branches:
        rows = len(branch.weight)
        joined = branch.rows is not None
        bias = linear.bias if joined or not parts else None
        part = nn.Linear(len(branch.columns), rows, bias is not None, device="meta")
        part.weight = _parameter(branch.weight.to(linear.weight), linear.weight)
        if bias is not None:
            part.bias = _parameter(bias[branch.rows] if joined else bias, bias)
        if branch.name in parts:
            raise InvalidOption(f"two branches have the name '{branch.name}'; rename one.")
        parts[branch.name] = Part(
            part,
            branch.columns,
            branch.rows,
            _clipped(branch.precision, len(branch.columns)),
            branch.scale,
        )
    layer = BranchedLinear(linear.in_features, linear.out_features, parts)
    return layer.train(linear.training)


def _clipped(precision: LayerPrecision, columns: int) -> LayerPrecision:
    """A branch with no more inputs than a tile has one accumulator."""
    tiled = precision.tile is not None and precision.tile < columns
    return precision if tiled else replace(precision, tile=None)


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """A copy that is trained where the original is."""
    return nn.Parameter(values.detach().clone(), requires_grad=like.requires_grad)


def split_layers(
    model: nn.Module,
    calibration: Iterable[Any],
    split: Split,
    exclude: Iterable[str] = (),
    plan: Plan | None = None,
) -> nn.Module:
    """A copy of a float model in which all linear layers of two or more inputs are split.

    Layers that no batch runs through stay whole, and so do modules derived from nn.Linear. Exclude
    a layer whose weight other code reads: a split one has several.

    Args:
        model: a float model; not modified. Its copy is calibrated in evaluation mode.
        calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
        split: makes the branches.
        exclude: names of layers to leave as they are, and of modules with all their layers.
        plan: widths of the layers before the split; `brevitas_axe.model.branches.branch_plan`
            gives those of their branches.

    Raises:
        EmptyCalibration: there is no batch.
        InvalidOption: an excluded layer does not exist, or there is nothing to split.
        NonFiniteValues: a batch, or the input of a layer, contains NaN or infinity.
    """
    return split_layers_by(model, as_batches(calibration), split, exclude, plan)


def split_layers_by(
    model: nn.Module,
    batches: Sequence[Batch],
    split: Split | Mapping[str, Split],
    exclude: Iterable[str] = (),
    plan: Plan | None = None,
) -> nn.Module:
    """`split_layers` for batches that are arguments of forwards already.

    With a mapping, layer → split, only these layers are split.
    """
    if isinstance(exclude, str):
        raise InvalidOption(f"exclude is a list of names; give ['{exclude}'].")
    planned: Mapping[str, LayerPrecision] = {} if plan is None else plan.layers
    # A model that is itself a layer is replaced as the only child of a container.
    holder, exclude = nn.ModuleDict({_ROOT: copy.deepcopy(model)}), tuple(exclude)
    modules = dict(holder[_ROOT].named_modules(remove_duplicate=False))
    unknown = [name for name in exclude if name not in modules]
    if unknown:
        raise InvalidOption(f"the excluded layer '{unknown[0]}' is not in the model.")
    kept = {part for name in exclude for part in modules[name].modules()}
    linears = {
        name: module
        for name in find_unquantized(holder[_ROOT])
        if type(module := modules[name]) is nn.Linear
        and module.in_features > 1
        and module not in kept
        and (not isinstance(split, Mapping) or name in split)
    }
    samples = _samples(holder[_ROOT], linears, batches)
    if not samples:
        raise InvalidOption(
            "no float linear layer with two or more inputs is called; split the model before it is "
            "quantized."
        )
    made = {}
    for name, sample in samples.items():
        precision = planned.get(name, LayerPrecision())
        used = split[name] if isinstance(split, Mapping) else split
        branches = used(float_problem(name, linears[name], precision, sample), precision, sample)
        if len(branches) > 1 or any(branch.scale is not None for branch in branches):
            made[linears[name]] = branched(linears[name], branches)
    # A layer that is registered under several names is replaced under all of them.
    for path, module in list(holder.named_modules(remove_duplicate=False)):
        if module in made:
            holder.set_submodule(path, made[module])
    return holder[_ROOT]


def float_problem(
    name: str, linear: nn.Linear, precision: LayerPrecision, sample: Tensor
) -> LayerProblem:
    """The problem that a split is given: moments of float inputs, ranges of the precision."""
    precision.check_integers(name, "splits work with")
    weight = linear.weight.detach()
    weight_bits = precision.weight_bits or _OPEN_BITS
    most = max(2 ** (weight_bits - 1) - 1, 1)
    input_range = InputRange.from_bits(precision.input_bits or _OPEN_BITS, bool((sample < 0).any()))
    scale = (weight.abs().amax(-1) / most).clamp_min(torch.finfo(weight.dtype).tiny)
    rows = sample.to(torch.promote_types(sample.dtype, torch.float32))
    return LayerProblem(
        weight=weight.unsqueeze(0),
        hessian=(rows.mT @ rows / len(rows)).unsqueeze(0),
        scale=scale.unsqueeze(0),
        weight_low=-most,
        weight_high=most,
        input_low=input_range.low,
        input_high=input_range.high,
        accumulator_bit_width=precision.accumulator,
        tile_size=precision.tile,
        name=name,
    )


@torch.no_grad()
def _samples(
    model: nn.Module, linears: dict[str, nn.Linear], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Layer → inputs [n, K], with the largest of each channel; layers not called are left out."""
    found: dict[str, Tensor] = {}

    def watch(name: str, layer: Layer, args: tuple, kwargs: dict) -> None:
        x = first_input(args, kwargs).detach().reshape(-1, layer.in_features)
        if len(x) == 0:  # an expert without tokens
            return
        if not bool(x.isfinite().all()):
            raise NonFiniteValues(
                f"the input of layer '{name}' contains NaN or infinity, so it cannot be split; "
                "mend the model or its calibration data, or exclude the layer."
            )
        found[name] = _thinned(torch.cat([found[name], x]) if name in found else x)

    with hooked(linears, before=watch), evaluating(model):
        for args, kwargs in batches:
            model(*args, **kwargs)
    return found


def _thinned(x: Tensor) -> Tensor:
    """Evenly spaced rows, and those with the largest magnitude of a channel."""
    if len(x) <= SAMPLE_ROWS:
        return x.clone()
    spaced = torch.arange(SAMPLE_ROWS, device=x.device) * len(x) // SAMPLE_ROWS
    return x[torch.cat([spaced, x.abs().argmax(0)]).unique()]
