"""Applies a `Change` exactly: the giver of a tensor divides it, its readers multiply it back."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.protocol import Change, Site
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.offset import Fronted, Offset, Scale

# Layers whose weight can take a factor per input channel. Derived classes are left out: they may
# compute something else.
READERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def is_reader(module: nn.Module) -> bool:
    """True for a plain linear layer or convolution."""
    return type(module) in READERS


def takes_shift(giver: nn.Module) -> bool:
    """Whether a giver adds a constant per channel, or can be made to."""
    return is_reader(giver) or isinstance(giver, (nn.LayerNorm, _BatchNorm))


def apply_change(module: nn.Module, site: Site, change: Change) -> None:
    """Rewrites a module in place so that its readers get (x − shift) / scale and give the same.

    Numbers are computed in float64 and rounded once, to the dtype of each parameter. Parameters
    become new ones, so that a layer elsewhere that shares an old one keeps it.

    Args:
        module: contains the layers of the site.
        site: as `find_sites` found it in this module.
        change: see `Change`.

    Raises:
        InvalidOption: the factors are not positive numbers, the shifts are no numbers, there is not
            one for each channel, or a shift would move the zeros that a convolution pads with.
    """
    scale, shift = vectors(site, change)
    moved = bool(shift.any())
    if moved and site.padded:
        raise InvalidOption(
            f"the input of layer '{site.readers[0]}' cannot be shifted, for zeros are padded to "
            "it; leave the shift out where `site.padded`."
        )
    with torch.no_grad():
        if site.giver is not None:
            inside = shift if site.shifts else torch.zeros_like(shift)
            divide(layer_of(module, site.giver), scale, inside)
        for name in site.readers:
            layer = layer_of(module, name)
            _multiply(layer, scale, shift)
            front = []
            if site.giver is None:
                front.append(Scale(_along_channels(layer, 1 / scale)))
            if moved and (site.giver is None or not site.shifts):
                front.append(Offset(_along_channels(layer, -shift / scale)))
            if front:
                first = front[0] if len(front) == 1 else nn.Sequential(*front)
                module.set_submodule(name, Fronted(first, module.get_submodule(name)))


def layer_of(module: nn.Module, name: str) -> Layer:
    """The layer of a name, also inside the wrapper that an earlier change has put around it."""
    layer = module.get_submodule(name)
    while isinstance(layer, Fronted):
        layer = layer.layer
    return cast(Layer, layer)


def vectors(site: Site, change: Change) -> tuple[Tensor, Tensor]:
    """Scale and shift of a change, float64 [C], with 1 and 0 where there is none."""
    ones = torch.ones_like(site.low, dtype=torch.float64)
    scale = ones if change.scale is None else change.scale.double()
    shift = 0 * ones if change.shift is None else change.shift.double()
    right = scale.shape == shift.shape == ones.shape
    if not right or not bool((scale > 0).all() and (scale + shift).isfinite().all()):
        raise InvalidOption(
            f"a change of the input of layer '{site.readers[0]}' needs {len(ones)} positive "
            "factors and finite shifts, one for each channel."
        )
    return scale, shift


def divide(giver: Layer, scale: Tensor, shift: Tensor) -> None:
    """Makes a norm, linear layer or convolution give (x − shift) / scale.

    Args:
        giver: its weight and bias are replaced.
        scale, shift: float64 [channels].
    """
    old: Tensor = giver.weight
    by = scale.view(-1, *[1] * (old.dim() - 1))
    _replace(giver, "weight", old.detach().double() / by)
    bias = getattr(giver, "bias", None)
    if bias is not None or bool(shift.any()):
        before = 0 if bias is None else bias.detach().double()
        _replace(giver, "bias", (before - shift) / scale)


def _multiply(reader: Layer, scale: Tensor, shift: Tensor) -> None:
    """W·diag(scale), and c + W·shift, where a missing bias is made if it is needed."""
    old = reader.weight.detach().double()
    groups = 1 if isinstance(reader, nn.Linear) else reader.groups
    # [groups, rows of a group, inputs of a group, kernel]; every group has channels of its own.
    grouped = old.view(groups, old.shape[0] // groups, old.shape[1], -1)
    factors = scale.view(groups, 1, -1, 1)
    _replace(reader, "weight", (grouped * factors).view(old.shape))
    if bool(shift.any()):
        added = (grouped * shift.view(groups, 1, -1, 1)).sum((2, 3)).flatten()
        _replace(reader, "bias", added if reader.bias is None else reader.bias.detach() + added)


def _replace(module: Layer, key: str, value: Tensor) -> None:
    old = getattr(module, key, None)
    like: Tensor = module.weight if old is None else old
    setattr(module, key, nn.Parameter(value.to(like), requires_grad=like.requires_grad))


def _along_channels(reader: Layer, values: Tensor) -> Tensor:
    """Values [C] that broadcast against a reader's input, in the dtype of its weight."""
    trailing = 0 if isinstance(reader, nn.Linear) else len(reader.kernel_size)
    return values.view(-1, *[1] * trailing).to(reader.weight)
