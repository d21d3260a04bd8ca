"""Hessian scores augmented by what layers lose together (arXiv 2306.04879).

A_i = S_i + λ Σ_j D_ij with S_i = ½·mean trace(H_ii)·||ΔW_i||² and D_ij = L(i, j) − L(i) − L(j) +
L(0). No public code exists; this is our reconstruction. S is the harm and D the pairs of the
scores; the allocator `bisection` orders layers by A.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

import numpy as np

from brevitas_axe.methods.sensitivity.budgeted import moments, part
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.hutchinson import Hutchinson
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.methods.sensitivity.twin import Substitute
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Augmented:
    """Hutchinson's scores, and interactions measured at one choice of each layer.

    D is measured once per pair, with each layer at its choice of largest S, or at the one with
    weight bits nearest to those that are asked for, written S°. At other choices it is taken as
    D·sqrt(S_i / S_i°)·sqrt(S_j / S_j°).

    Attributes:
        probes: Rademacher vectors per batch and layer.
        strength: λ.
        bits: of weights at which interactions are measured, near those that a plan will have; None
            for each layer's most harmful choice.
    """

    probes: int = 8
    strength: float = 1.0
    bits: int | None = None
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="Hessian trace and measured pairs",
        export="finn",
        source="arXiv 2306.04879 (reconstruction)",
        gradients=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, probes=(1, inf), strength=(0, inf))
        if self.bits is not None:
            check_ranges(self, bits=(1, inf))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        own = Hutchinson(self.probes)(case, trials)
        at = {name: self._index(own.harm[name], o) for name, o in case.choices.layers.items()}
        losses = pair_losses(case, trials, {n: case.choices.layers[n][i] for n, i in at.items()})
        extent = {n: np.sqrt(harm / (harm[at[n]] or 1.0)) for n, harm in own.harm.items()}
        return Scores(
            case.choices,
            own.harm,
            {
                pair: self.strength
                * interaction(losses, pair)
                * np.outer(*(extent[n] for n in pair))
                for pair in combinations(case.names, 2)
            },
        )

    def _index(self, harm: np.ndarray, options: Sequence[LayerPrecision]) -> int:
        """Of a layer's choices the one at which its interactions are measured."""
        if self.bits is None:
            return int(harm.argmax())
        away = [abs((option.weight_bits or self.bits) - self.bits) for option in options]
        nearest = [index for index, distance in enumerate(away) if distance == min(away)]
        return max(nearest, key=lambda index: harm[index])


def pair_losses(
    case: Case, trials: Trials, at: Mapping[str, LayerPrecision]
) -> dict[tuple[str, ...], float]:
    """Losses with no layer, each layer and each pair of layers at a choice, others in float.

    Args:
        case: model and data.
        trials: one for every loss.
        at: layer → its choice.

    Returns:
        Tuple of quantized layers → loss.
    """
    pairs = list(combinations(case.names, 2))
    sets: list[tuple[str, ...]] = [(), *((name,) for name in case.names), *pairs]
    keys = {names: f"loss of { {n: at[n] for n in names} }" for names in sets}
    missing = {n for names in sets if not trials.knows(keys[names]) for n in names}
    parts: dict[str, Substitute] = {}
    for known in moments(case, [name for name in case.names if name in missing]):
        solved = trials.run(part, [(case, n, at[n], known[n]) for n in known])
        parts.update(zip(known, solved, strict=True))
    # Parts are solved only for trials whose result is not known yet.
    work = [(keys[s], (case, {n: parts[n] for n in s if n in parts})) for s in sets]
    return dict(zip(sets, trials.map(Case.loss, work), strict=True))


def interaction(losses: dict, pair: tuple) -> float:
    """D_ij = L(i, j) − L(i) − L(j) + L(0).

    Args:
        losses: tuple of quantized layers → loss.
        pair: (i, j).
    """
    first, second = pair
    return losses[pair] - losses[(first,)] - losses[(second,)] + losses[()]


augmented = Augmented()
