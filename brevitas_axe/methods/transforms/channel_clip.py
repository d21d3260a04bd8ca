"""LRP-QViT's channel-wise quantization with clipping (arXiv 2401.11243), as one grid per tensor.

Every channel is to have a range of its own. Shift and factor make these ranges one, after RepQ-ViT
(arXiv 2212.08254, zkkli/RepQ-ViT a160561b92, classification/test_quant.py), and move into the layer
that gives the tensor.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.affine import PerTensor
from brevitas_axe.methods.transforms.protocol import EQUALIZING, Change, Site
from brevitas_axe.methods.transforms.rounding_error import best_change
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

# Smallest step of a channel, as a share of the mean one: a channel may be constant.
_SMALLEST = 1e-5


@dataclass(frozen=True)
class ChannelClip(PerTensor):
    """A channel with range [l, u] becomes (x − l)/r − 2^(N−1)·mean δ, with δ = (u − l)/(2^N − 1).

    Here r = δ/mean δ, so that the range of every channel is the whole signed grid of N bits and
    step mean δ. RepQ-ViT averages zero points; here there is none, which FINN demands, since the
    shift puts every channel where a signed grid is. Ranges are clipped to percentiles of those of
    all channels, which keeps outliers from setting the mean. The share that is clipped is the one
    with the least error of the readers; not clipping and not changing anything are candidates.

    Only for tensors whose giver takes a shift per channel: layer norms and batch norms, value
    projections, layers that nothing follows before the reader.

    Attributes:
        percents: percentages of channels that are clipped at either end, to choose from.
        exclude: names of layers to leave alone.

    Raises:
        InvalidOption: no percentage, or one outside [0, 50).
    """

    percents: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 5.0)
    exclude: tuple[str, ...] = ()
    stage = EQUALIZING
    facts = Facts(
        kind="–",
        granularity="channel",
        signal="output error; ranges of channels",
        export="finn",
        source="arXiv 2401.11243, 2212.08254",
    )

    def __post_init__(self) -> None:
        if not self.percents or not all(0 <= p < 50 for p in self.percents):
            raise InvalidOption(
                "channel_clip needs percentages of at least 0 and below 50, such as percents=0;1, "
                f"not {self.percents}."
            )

    def change(self, site: Site, widths: LayerPrecision) -> Change | None:
        """The change of one tensor; None where none is better."""
        bits = widths.input_bits
        if site.giver is None or not site.shifts or site.padded or bits is None:
            return None
        tried = (reparametrized(*clipped(site.low, site.high, p), bits) for p in self.percents)
        return best_change(site, widths, tried)


def clipped(low: Tensor, high: Tensor, percent: float) -> tuple[Tensor, Tensor]:
    """Bounds of channels, [C], no further than percentiles of the bounds of all channels.

    A channel that lies outside of these percentiles as a whole keeps its own.
    """
    low, high = low.double(), high.double()
    least = low.maximum(low.quantile(percent / 100))
    most = high.minimum(high.quantile(1 - percent / 100))
    return least.where(least < most, low), most.where(least < most, high)


def reparametrized(low: Tensor, high: Tensor, bits: int) -> Change:
    """The change that makes [low, high] of every channel the signed grid of one step.

    Args:
        low, high: bounds of the channels, [C].
        bits: N, of the grid.
    """
    step = (high.double() - low.double()).clamp(min=0) / (2**bits - 1)
    mean = step.mean()
    if not bool(mean > 0):
        return Change()
    step = step.clamp(min=float(mean) * _SMALLEST)
    return Change(step / mean, low.double() + 2 ** (bits - 1) * step)


channel_clip = ChannelClip()
