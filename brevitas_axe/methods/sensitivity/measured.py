"""Measured rise of the loss when one layer alone takes a choice, its weights solved for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from brevitas_axe.methods.sensitivity.budgeted import LayerMoments, for_choices, over_layers, part
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Measured:
    """Harm = metric with the layer at the choice and all others in float − metric of the float."""

    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="measured loss",
        export="finn",
        source="arXiv 2306.04879, 2405.17873",
    )

    def __call__(self, case: Case, trials: Trials) -> Scores:
        losses = over_layers(case, trials, _losses)
        base = case.loss({})
        return Scores(case.choices, {name: np.array(v) - base for name, v in losses.items()})


def _losses(case: Case, name: str, known: LayerMoments) -> list[float]:
    return for_choices(
        case, name, lambda choice: case.loss({name: part(case, name, choice, known)})
    )


measured = Measured()
