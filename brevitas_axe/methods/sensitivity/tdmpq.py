"""TDMPQ: what a perturbation of a layer's weights does (CPTQuant, arXiv 2412.03599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brevitas_axe.formats import Format
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.slopes import weight_slopes
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.methods.sensitivity.twin import Substitute
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

LayerBits = list[tuple[str, Format | None]]  # (layer, weight bits)


@dataclass(frozen=True)
class Tdmpq:
    """Harm = |L(W + ε) − L(W)|, or its first-order term |<g, ε>| from one backward pass.

    ε is the error of rounding the weights to nearest at the choice's bits. It says nothing about
    input bits and accumulators.

    Attributes:
        first_order: True for |<g, ε>|.
    """

    first_order: bool = False
    facts = Facts(
        kind="MPW",
        granularity="layer",
        signal="loss under a perturbation",
        export="finn",
        source="arXiv 2412.03599",
    )

    def __call__(self, case: Case, trials: Trials) -> Scores:
        widths = [
            (name, bits)
            for name, options in case.choices.layers.items()
            for bits in dict.fromkeys(choice.weight for choice in options)
        ]
        found = (_by_slope if self.first_order else _by_loss)(case, trials, widths)
        harms = dict(zip(widths, found, strict=True))
        return Scores(
            case.choices,
            {
                name: np.array([harms[name, choice.weight] for choice in options])
                for name, options in case.choices.layers.items()
            },
        )


def _by_slope(case: Case, trials: Trials, widths: LayerBits) -> list[float]:
    # One trial: a backward pass gives the slopes of all layers.
    (found,) = trials.map(_first_order, [(f"first order {widths}", (case, widths))])
    return found


def _first_order(case: Case, widths: LayerBits) -> list[float]:
    slopes = {name: torch.zeros_like(layer.weight) for name, layer in case.layers().items()}
    for reference, batch in zip(case.reference, weight_slopes(case), strict=True):
        for name in slopes:
            slopes[name] += batch[name] * (len(reference) / case.samples)
    return [abs(float((slopes[name] * _step(case, name, bits)).sum())) for name, bits in widths]


def _step(case: Case, name: str, bits: Format | None) -> Tensor:
    value, _ = case.rounded(name, LayerPrecision(weight=bits))
    return value - case.layer(name).weight.detach()


def _by_loss(case: Case, trials: Trials, widths: LayerBits) -> list[float]:
    work = [(f"{name} {bits}", (case, name, bits)) for name, bits in widths]
    losses = trials.map(_rounded_loss, work)
    base = case.loss({})
    return [abs(float(loss) - base) for loss in losses]


def _rounded_loss(case: Case, name: str, bits: Format | None) -> float:
    value, _ = case.rounded(name, LayerPrecision(weight=bits))
    return case.loss({name: Substitute(value)})


tdmpq = Tdmpq()
