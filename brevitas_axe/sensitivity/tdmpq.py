"""TDMPQ: what a perturbation of a layer's weights does (CPTQuant, arXiv 2412.03599)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from brevitas_axe.plan import LayerPrecision
from brevitas_axe.sensitivity.case import Case
from brevitas_axe.sensitivity.facts import Facts
from brevitas_axe.sensitivity.scores import Scores
from brevitas_axe.sensitivity.slopes import weight_slopes
from brevitas_axe.sensitivity.trials import Trials
from brevitas_axe.sensitivity.twin import Part


@dataclass(frozen=True)
class Tdmpq:
    """Harm = |L(W + ε) − L(W)|, or its first order |<g, ε>| from one backward pass.

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
        return self._by_slope(case) if self.first_order else self._by_loss(case, trials)

    def _by_slope(self, case: Case) -> Scores:
        slopes: dict[str, Tensor] = {}
        found = list(weight_slopes(case))
        sizes = [len(reference) for reference in case.reference]
        for name in case.names:
            batches = zip(found, sizes, strict=True)
            slopes[name] = torch.stack([b[name] * n for b, n in batches]).sum(0) / case.samples
        return Scores(
            case.choices,
            {
                name: np.array(
                    [abs(float((slopes[name] * _step(case, name, c)).sum())) for c in options]
                )
                for name, options in case.choices.layers.items()
            },
        )

    def _by_loss(self, case: Case, trials: Trials) -> Scores:
        widths = {
            n: list(dict.fromkeys(c.weight for c in o)) for n, o in case.choices.layers.items()
        }
        keys = [(name, bits) for name in case.names for bits in widths[name]]
        work = [(f"{name} {bits}", (case, name, bits)) for name, bits in keys]
        losses = dict(zip(keys, trials.map(_rounded_loss, work), strict=True))
        base = case.loss({})
        return Scores(
            case.choices,
            {
                name: np.array([abs(float(losses[name, c.weight]) - base) for c in options])
                for name, options in case.choices.layers.items()
            },
        )


def _step(case: Case, name: str, choice: LayerPrecision) -> Tensor:
    value, _ = case.rounded(name, choice)
    return value - case.layer(name).weight.detach()


def _rounded_loss(case: Case, name: str, bits: int | None) -> float:
    value, _ = case.rounded(name, LayerPrecision(weight=bits))
    return case.loss({name: Part(value)})


tdmpq = Tdmpq()
