"""A formula as a method would write one, for tests of what every formula shares."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from brevitas_axe.methods.transforms.affine import Affine
from brevitas_axe.methods.transforms.protocol import Change, Site
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

FACTS = Facts(kind="–", granularity="channel", signal="range", export="finn", source="a test")


def centred(site: Site, widths: LayerPrecision) -> Change:
    """Every channel from −1 to 1."""
    shift = None if site.padded else (site.high + site.low) / 2
    middle = 0 if shift is None else shift
    return Change((site.high - middle).abs().clamp(min=1e-3), shift)


channel_range = Affine(centred, FACTS)
WIDTHS = LayerPrecision(weight=8, input=4)


def parameters(module: nn.Module) -> dict:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def excluding(transform, *names: str):
    return replace(transform, exclude=names)
