"""Importance by outliers in the weights (QuantMoE-Bench, arXiv 2406.08155).

The score of a weight matrix is the largest ratio, over its inputs, of the largest magnitude to the
mean magnitude of that input's weights: where it is large, one scale fits the weights badly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.model.layers import unroll_weight
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Outliers:
    """Importance = max over inputs of (largest / mean magnitude of the input's weights).

    Attributes:
        top: share of the layers that are important, as published 0.25: they get importance 1, and
            the others nearly none. 0 takes the ratios themselves.
    """

    top: float = 0.25
    needs_inputs = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="largest over mean weight of each input",
        export="finn",
        source="arXiv 2406.08155",
    )

    def __post_init__(self) -> None:
        check_ranges(self, top=(0, 1))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        found = trials.map(_ratio, [(name, (case, name)) for name in case.names])
        ratios = dict(zip(case.names, map(float, found), strict=True))
        if self.top:
            count = math.ceil(self.top * len(ratios))
            most = max(ratios.values()) or 1.0
            first = sorted(ratios, key=ratios.__getitem__, reverse=True)[:count]
            # Nearly none: the others keep their order.
            ratios = {n: 1.0 if n in first else 1e-3 * r / most for n, r in ratios.items()}
        return from_importance(case.choices, ratios)


def _ratio(case: Case, name: str) -> float:
    layer = case.layer(name)
    return outlier_ratio(unroll_weight(layer, layer.weight.detach()))


def outlier_ratio(weight: torch.Tensor) -> float:
    """The score of weights [groups, rows, K]; inputs whose weights are all zero do not count."""
    size = weight.abs().double()
    mean = size.mean(1)
    return float((size.amax(1) / torch.where(mean > 0, mean, 1.0)).max())


outliers = Outliers()
