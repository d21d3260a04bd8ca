"""SQ-b of MPTQ-ViT (arXiv 2401.14895): a shift and a factor per channel, folded into the giver."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf

import torch

from brevitas_axe.methods.transforms.affine import PerTensor
from brevitas_axe.methods.transforms.protocol import EQUALIZING, Change, Site
from brevitas_axe.methods.transforms.rounding_error import best_change
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# No channel gets a smaller factor.
_SMALLEST = 1e-5


@dataclass(frozen=True)
class ShiftScale(PerTensor):
    """x' = (x − b)/s with b = (max + min)/2 and s = max|x − b|^α / max|W|^(1−α) per channel.

    Centred channels use both halves of a signed grid, and need no zero point. The paper's abstract
    has the idea; the formulas are reconstructed. The strength α of every tensor is the one with the
    least error of its readers, and a tensor where none lessens it stays as it is. Norms, linear
    layers and convolutions that give a tensor take shift and factor into their parameters; RMSNorm,
    padded convolutions and layers behind a ReLU take the factor alone.

    Attributes:
        steps: strengths i/steps for i = 0 ... steps are tried.
        shift: False for b = 0, which is SmoothQuant folded into the giver.
        front: also where nothing can take the shift or the factor, by an addition and a
            multiplication in front of the layer, which stay in the file (qonnx).
        exclude: names of layers to leave alone.

    Raises:
        InvalidOption: fewer than one step.
    """

    steps: int = 10
    shift: bool = True
    front: bool = False
    exclude: tuple[str, ...] = ()
    stage = EQUALIZING
    facts = Facts(
        kind="–",
        granularity="channel",
        signal="output error; ranges of activations and weights",
        export="finn",
        source="arXiv 2401.14895 (reconstruction)",
    )

    def __post_init__(self) -> None:
        check_ranges(self, steps=(1, inf))

    def change(self, site: Site, widths: LayerPrecision) -> Change | None:
        """The change of one tensor; None where none is better."""
        if site.giver is None and not self.front:
            return None
        return best_change(site, widths, self._candidates(site))

    def _candidates(self, site: Site) -> Iterator[Change]:
        low, high = site.low.double(), site.high.double()
        shifts = self.shift and not site.padded and (site.shifts or self.front)
        middle = (low + high) / 2 if shifts else 0 * low
        activation = (high - middle).abs().maximum((low - middle).abs())
        weight = torch.stack([w.double().abs().amax((0, 1)) for w in site.weights]).amax(0)
        # A channel that is always the same, or that no weight reads, keeps its factor.
        used = (activation > 0) & (weight > 0)
        for step in range(self.steps + 1):
            strength = step / self.steps
            factor = activation**strength / weight.clamp(min=_SMALLEST) ** (1 - strength)
            scale = factor.clamp(min=_SMALLEST).where(used, 1.0)
            yield Change(scale, middle if shifts else None)


shift_scale = ShiftScale()
