"""NoisyQuant (arXiv 2211.16056): a fixed number per channel, added before rounding and taken back.

y = q(W)·q(x + N) + c − q(W)·N. As a change of the tensor that is x' = x + N, and what gives x takes
N into its bias; the part (q(W) − W)·N is a constant per output, which the solver's bias takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.affine import PerTensor
from brevitas_axe.methods.transforms.protocol import NOISY, Change, Site
from brevitas_axe.methods.transforms.rounding_error import best_change, input_step
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# What the published code tries: ranges of the grid, shifts of one step to either side, and
# multiples of the noise below 2.
CLIPS, SHIFTS, MULTIPLES = 1000, 200, 1000


@dataclass(frozen=True)
class Noisy(PerTensor):
    """x' = x + N, with the N of least error of the readers; N = 0 is a candidate.

    Noise helps where many numbers lie at one place of the grid, near the boundary of two integers:
    at distance d from it, uniform noise up to n ≥ d helps where d < n·(1 − sqrt(n/(3b))), b half a
    step. The error that is compared leaves the mean of every output out, for the bias takes it;
    what the paper gains is largely that mean.

    Attributes:
        mode: "uniform", N uniform in ±n per channel, with `steps` values of n up to one step, as in
            the paper's theorem; "shift", one N for all channels, `steps` values to either side up
            to half a step; "published", what the authors' code does (kriskrisliu/NoisyQuant
            ba544d1642, fast_quant.py): the range, then a shift for all channels, then a multiple of
            one drawn vector, each by the output error with rounded weights. There N(−1, 2²) is
            drawn, not a uniform number. This takes seconds for a layer, and the range that it finds
            is replaced by the one that is fitted later.
        steps: number of values that are tried.
        seed: of the random numbers.
        front: also where nothing can take N, by an addition in front of the layer, which stays in
            the file (qonnx).
        exclude: names of layers to leave alone.

    Raises:
        InvalidOption: an unknown mode, or fewer than one step.
    """

    mode: Literal["uniform", "shift", "published"] = "uniform"
    steps: int = 8
    seed: int = 0
    front: bool = False
    exclude: tuple[str, ...] = ()
    stage = NOISY
    facts = Facts(
        kind="–",
        granularity="channel",
        signal="output error",
        export="finn",
        source="arXiv 2211.16056",
    )

    def __post_init__(self) -> None:
        if self.mode not in ("uniform", "shift", "published"):
            raise InvalidOption(
                f"the mode of noisy is uniform, shift or published, not '{self.mode}'."
            )
        check_ranges(self, steps=(1, inf))

    def change(self, site: Site, widths: LayerPrecision) -> Change | None:
        """The change of one tensor; None where none is better."""
        if site.padded or widths.input_bits is None or not (site.shifts or self.front):
            return None
        tried = (Change(shift=-noise) for noise in self._candidates(site, widths))
        return best_change(site, widths, tried)

    def _candidates(self, site: Site, widths: LayerPrecision) -> Iterator[Tensor]:
        bits = widths.input_bits
        assert bits is not None
        sample = site.sample.double()
        generator = torch.Generator().manual_seed(self.seed)
        if self.mode == "published":
            if widths.weight_bits is not None:
                weight = torch.cat([w.flatten(0, 1) for w in site.weights])
                yield published(sample, weight.double(), bits, widths.weight_bits, generator)[1]
            return
        step = input_step(sample, bits)
        ones = torch.ones_like(site.low, dtype=torch.float64)
        if self.mode == "shift":
            for index in range(1, self.steps + 1):
                yield ones * step * (index / (2 * self.steps))
                yield -ones * step * (index / (2 * self.steps))
            return
        drawn = 2 * torch.rand(len(ones), generator=generator, dtype=torch.float64).to(ones) - 1
        for index in range(1, self.steps + 1):
            yield drawn * step * (index / self.steps)


def published(
    x: Tensor, weight: Tensor, bits: int, weight_bits: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """(step of the grid, N per channel) as the authors' code finds them.

    It differs in one point: where the full range is best the authors' code fails, and here it is
    taken.

    Args:
        x: [n, C].
        weight: [rows, C].
        bits: of x.
        weight_bits: of the weight.
        generator: draws the noise.
    """
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (weight_bits - 1) - 1)
    near = (weight / scale).round() * scale
    top = 2 ** (bits - 1) - 1

    def q(value: Tensor, step: Tensor) -> Tensor:
        return (value / step).round().clamp(-top - 1, top) * step

    # The mean squared error of the outputs of an error e is the sum of (e·G)∘e, G = Wᵀ·W.
    gram = near.t() @ near / (len(x) * len(weight))

    def first_least(errors: Iterator[Tensor]) -> int:
        losses = torch.stack([((e @ gram) * e).sum() for e in errors])
        return int(losses.argmin())

    # The clip is judged with the real x against the same rounded weights.
    clips = [x.abs().max() / CLIPS * index for index in range(CLIPS, 0, -1)]
    steps = [clip / top for clip in clips]
    step = steps[first_least(q(x.clamp(-c, c), s) - x for c, s in zip(clips, steps, strict=True))]
    shifts = [step * index / SHIFTS for index in range(-SHIFTS, SHIFTS)]
    shift = shifts[first_least(q(x + value, step) - value - x for value in shifts)]
    # In float32, as theirs, which gives other numbers than float64.
    drawn = torch.randn(x.shape[1], generator=generator, dtype=torch.float32).to(x)
    drawn = (drawn * 2 - 1) * step
    noises = [shift + drawn * index / MULTIPLES for index in range(2 * MULTIPLES)]
    return step, noises[first_least(q(x + noise, step) - noise - x for noise in noises)]


noisy = Noisy()
