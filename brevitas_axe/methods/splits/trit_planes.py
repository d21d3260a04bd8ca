"""Linear layers as the sum of two branches with weights -1, 0 and 1 (PTQTP).

"PTQTP: Post-Training Quantization to Trit-Planes for Large Language Models", arXiv 2509.16989 (no
code is public). Every row and group of inputs is a1 t1 + a2 t2 with t in {-1, 0, 1}. Two steps
alternate until no pair changes: the scales by regularized least squares, and every pair (t1, t2) as
the nearest of nine levels. The published start is the sign of the weights; from twenty more, with
different ratios of the scales, other optima are found, and the best of each group is taken.

Both branches read all inputs, so together they have nine levels at two ternary weights: 3.17 bits
and two scales per group.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import inf

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# Smallest ratio of the scales of a start; the largest is 1. With 0.05, one of twenty would be a
# half, where two levels coincide and planes are not told apart.
LEAST_RATIO = 0.03
# Most alternations of scales and planes.
ROUNDS = 50
# Added to the diagonal of the least squares, and the share of it where planes are nearly equal.
RIDGE, STRONG_RIDGE, SINGULAR = 1e-8, 1e-2, 1e-6
# Groups that are fitted at once, so that memory stays small.
AT_ONCE = 1 << 11
# A plane that is not used gets this share of the other's scale.
_UNUSED = 1 / 3


@dataclass(frozen=True)
class TritPlanes:
    """Splits linear layers into two ternary planes that are refined together.

    The bits of the plan are not used: each plane has two, with integers -1, 0 and 1. Compare the
    two with 3 to 4 bits. Groups are the plan's tiles, or whole rows where it has none. With one
    scale per row and planned tiles, the quantizers find scales of their own.

    Attributes:
        starts: ratios of the scales from which the planes are fitted, besides the published start.
    """

    starts: int = 20
    facts = Facts(
        kind="–",
        granularity="row and group of inputs",
        signal="none; the solve refines it",
        export="qonnx",
        source="arXiv 2509.16989 (reconstruction)",
    )

    def __post_init__(self) -> None:
        check_ranges(self, starts=(0, inf))

    def __call__(
        self, problem: LayerProblem, precision: LayerPrecision, sample: Tensor
    ) -> tuple[Branch, ...]:
        """Branches `coarse` and `fine`; see `brevitas_axe.methods.splits.Split`."""
        weight = problem.weight[0]
        size = precision.tile or problem.columns
        scales, planes = zip(
            *(fitted(part, self.starts) for part in weight.split(size, -1)), strict=True
        )
        coarse = torch.cat([s[:, :1] * t[0] for s, t in zip(scales, planes, strict=True)], -1).to(
            weight.dtype
        )
        scale = torch.stack(scales, 1).to(weight.dtype)  # [rows, groups, 2]
        widths = replace(precision, weight=2)
        columns = torch.arange(problem.columns)
        return tuple(
            Branch(
                name,
                columns,
                part,
                widths,
                scale=scale[..., index] if precision.tile is not None else scale[:, 0, index],
            )
            for index, (name, part) in enumerate(
                {"coarse": coarse, "fine": weight - coarse}.items()
            )
        )


def fitted(weight: Tensor, starts: int = 20) -> tuple[Tensor, Tensor]:
    """The best planes of every row, over all starts.

    Args:
        weight: [n, size], one group of inputs.
        starts: ratios of the scales, besides the published start.

    Returns:
        (positive scales [n, 2], the larger first; planes [2, n, size] of -1, 0 and 1).
    """
    # Levels are symmetric: planes of the magnitudes, times the signs.
    parts = [_fitted(part, starts) for part in weight.abs().split(AT_ONCE)]
    scales = torch.cat([scales for scales, _ in parts])
    planes = torch.cat([planes for _, planes in parts], 1) * weight.sign()
    largest = torch.where(scales[:, :1] > 0, scales[:, :1], 1.0)
    # No weight of a plane with scale 0 counts; an integer needs some scale all the same.
    floor = torch.cat([largest, _UNUSED * largest], 1)
    return torch.where(scales > 0, scales, floor), planes * (scales > 0).mT.unsqueeze(-1)


def _fitted(magnitude: Tensor, starts: int) -> tuple[Tensor, Tensor]:
    least = torch.full_like(magnitude[:, 0], inf)
    best_scales, best = magnitude.new_zeros(len(magnitude), 2), _published_start(magnitude)
    for first in _starts(magnitude, starts):
        scales, planes, loss = alternated(magnitude, first)
        better = loss < least
        least[better] = loss[better]
        best_scales[better], best[:, better] = scales[better], planes[:, better]
    # What the regularization has taken.
    value = best_scales[:, :1] * best[0] + best_scales[:, 1:] * best[1]
    energy = torch.linalg.vecdot(value, value)
    factor = torch.linalg.vecdot(value, magnitude) / torch.where(energy > 0, energy, 1.0)
    return best_scales * factor.unsqueeze(1), best


def _published_start(magnitude: Tensor) -> Tensor:
    """Both planes are the signs."""
    return (magnitude > 0).to(magnitude).repeat(2, 1, 1)


def _starts(magnitude: Tensor, starts: int) -> Iterator[Tensor]:
    """Planes [2, n, size]: the published ones, then the nearest levels of several ratios."""
    yield _published_start(magnitude)
    largest = magnitude.amax(1)
    for ratio in torch.linspace(LEAST_RATIO, 1, starts).tolist():
        one = largest / (1 + ratio)
        yield nearest(magnitude, torch.stack([one, ratio * one], 1))


def alternated(magnitude: Tensor, planes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alternates scales and planes, row by row until no pair changes.

    Args:
        magnitude: [n, size] of the weights.
        planes: [2, n, size] to begin with.

    Returns:
        (scales [n, 2], planes [2, n, size], squared errors [n]) of each row's best round; that is
        its last one, unless nearly equal planes made the least squares strongly regularized.
    """
    n = len(magnitude)
    least = magnitude.new_full((n,), inf)
    best_scales, best = magnitude.new_zeros(n, 2), planes.clone()
    rows = torch.arange(n)
    for _ in range(ROUNDS):
        some = magnitude[rows]
        scales = least_squares(some, planes)
        found = nearest(some, scales)
        loss = error(some, scales, found)
        better = loss < least[rows]
        place = rows[better]
        least[place] = loss[better]
        best_scales[place], best[:, place] = scales[better], found[:, better]
        changed = (found != planes).any(2).any(0)
        if not bool(changed.any()):
            break
        rows, planes = rows[changed], found[:, changed]
    return best_scales, best, least


def least_squares(magnitude: Tensor, planes: Tensor) -> Tensor:
    """Scales (S^T S + r I)^-1 S^T w of given planes, S having one column per plane.

    Returns:
        [n, 2], without their signs and the larger first: the nine levels are symmetric.
    """
    one, two = planes
    aa, bb, ab = (torch.linalg.vecdot(x, y) for x, y in ((one, one), (two, two), (one, two)))
    singular = aa * bb - ab * ab < SINGULAR * aa * bb
    ridge = RIDGE + STRONG_RIDGE * (aa + bb) * singular
    aa, bb = aa + ridge, bb + ridge
    a, b = (torch.linalg.vecdot(plane, magnitude) for plane in planes)
    found = torch.stack([bb * a - ab * b, aa * b - ab * a], 1) / (aa * bb - ab * ab).unsqueeze(1)
    return found.abs().sort(1, descending=True).values


def nearest(magnitude: Tensor, scales: Tensor) -> Tensor:
    """For every magnitude the pair whose level is nearest, of nine.

    Args:
        magnitude: [n, size].
        scales: [n, 2], the larger first.

    Returns:
        [2, n, size]. The coarse plane is 0 or 1: with -1, no level is positive.
    """
    large, small = scales[:, :1], scales[:, 1:]
    alone = (magnitude > small / 2).to(magnitude)
    rest = magnitude - large
    beside = torch.where(rest.abs() > small / 2, rest.sign(), 0.0)
    closer = (rest - small * beside).abs() < (magnitude - small * alone).abs()
    return torch.stack([closer.to(magnitude), torch.where(closer, beside, alone)])


def error(weight: Tensor, scales: Tensor, planes: Tensor) -> Tensor:
    """[n] squared error of each row."""
    off = weight - scales[:, :1] * planes[0] - scales[:, 1:] * planes[1]
    return torch.linalg.vecdot(off, off)


trit_planes = TritPlanes()
