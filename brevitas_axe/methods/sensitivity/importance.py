"""Importance of output channels, |w·∂L/∂w| (arXiv 2308.07662), added up per layer."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.slopes import weight_slopes
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.model.layers import unroll_weight
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Importance:
    """With the allocator `greedy` under a memory budget: most importance per added bit first.

    Attributes:
        steps: points between zero and the weights at which the gradient is taken (integrated
            gradients; the paper has about 16); 1 for the gradient at the weights alone.
    """

    steps: int = 1
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="weight times gradient",
        export="finn",
        source="arXiv 2308.07662",
        gradients=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, steps=(1, inf))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        # One trial: labels are drawn for one batch after the other.
        (found,) = trials.map(_importance, [("importance", (case, self.steps))])
        return from_importance(case.choices, dict(zip(case.names, found, strict=True)))


def _importance(case: Case, steps: int) -> list[float]:
    return [float(channels.sum()) for channels in channel_importance(case, steps).values()]


def channel_importance(case: Case, steps: int = 1) -> dict[str, Tensor]:
    """Layer → float64 [groups, rows], Σ |w·∂L/∂w| of each output channel, mean over batches."""
    layers = case.layers()
    total = {name: torch.zeros((), dtype=torch.float64) for name in layers}
    paths = [weight_slopes(case, (step + 1) / steps) for step in range(steps)]
    for reference, batch in zip(case.reference, zip(*paths, strict=True), strict=True):
        for name, layer in layers.items():
            slope = torch.stack([point[name] for point in batch]).mean(0)
            product = unroll_weight(layer, (layer.weight.detach() * slope).double())
            total[name] = total[name] + product.abs().sum(-1) * (len(reference) / case.samples)
    return total


importance = Importance()
