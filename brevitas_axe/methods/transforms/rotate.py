"""Hadamard rotations of every linear layer's input (QuaRot, arXiv 2404.00456), by Brevitas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from brevitas.graph.equalize import LayerwiseActivationRotation
from torch import nn

from brevitas_axe.methods.transforms.protocol import ROTATING
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Rotate:
    """x' = x·H and W' = W·H, where Brevitas has a Hadamard matrix H of the layer's size.

    Attributes:
        exclude: names of layers to leave alone.
    """

    exclude: tuple[str, ...] = ()
    stage = ROTATING
    facts = Facts(
        kind="–", granularity="layer", signal="none", export="none", source="arXiv 2404.00456"
    )

    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]:
        LayerwiseActivationRotation(blacklist_layer=list(self.exclude)).apply(module)
        return ()


rotate = Rotate()
