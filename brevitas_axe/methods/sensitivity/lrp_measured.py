"""Relevance times measured sensitivity (Mix-QViT, arXiv 2501.06357; a reconstruction).

Relevance alone (`lrp`) ignores what a layer loses at so many bits. Here harm is Ω_l·s_l(b): s_l the
rise of the loss when layer l alone takes the choice, and Ω_l its relevance, as a multiple of the
mean. An integer program minimizes the sum; with pairs it is a quadratic one, whose terms are what
two layers lose together, times the root of both relevances.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from brevitas_axe.methods.sensitivity.augmented import interaction, pair_losses
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.lrp import relevances
from brevitas_axe.methods.sensitivity.measured import measured
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class LrpMeasured:
    """Harm = relevance of a layer × measured rise of the loss with that layer alone at a choice.

    Attributes:
        pairs: measures interactions as well, at each layer's most harmful choice, once per pair;
            at other choices they fall with the root of each layer's rise. The allocator `ilp` then
            solves a quadratic program.
    """

    pairs: bool = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="relevance propagation times measured loss",
        export="finn",
        source="arXiv 2501.06357 (reconstruction)",
        gradients=True,
    )

    def __call__(self, case: Case, trials: Trials) -> Scores:
        found = relevances(case, trials)
        mean = sum(found.values()) / len(found) or 1.0
        weight = {name: value / mean for name, value in found.items()}
        own = measured(case, trials)
        harm = {name: weight[name] * values for name, values in own.harm.items()}
        if not self.pairs:
            return Scores(case.choices, harm)
        at = {name: int(values.argmax()) for name, values in own.harm.items()}
        losses = pair_losses(case, trials, {n: case.choices.layers[n][i] for n, i in at.items()})
        extent = {name: _extent(values) for name, values in own.harm.items()}
        return Scores(
            case.choices,
            harm,
            {
                (i, j): np.sqrt(weight[i] * weight[j])
                * interaction(losses, (i, j))
                * np.outer(extent[i], extent[j])
                for i, j in combinations(case.names, 2)
            },
        )


def _extent(rises: np.ndarray) -> np.ndarray:
    """Root of every rise as a share of the largest, which gets 1 even where no loss rises."""
    largest = float(rises.max())
    if largest <= 0:
        return (rises == largest).astype(float)
    return np.sqrt(rises.clip(0) / largest)


lrp_measured = LrpMeasured()
