"""What a scorer gives: the estimated harm of every choice of every layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from brevitas_axe.display import html_table, one_line
from brevitas_axe.errors import NonFiniteValues
from brevitas_axe.plan import Choices

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Scores:
    """Estimated rise of the loss; only comparable within one table.

    Attributes:
        choices: what was scored.
        harm: layer → float64 [choices], estimated with that layer alone at the choice.
        pairs: (layer, layer) → float64 [choices of the first, choices of the second], what both
            together add to the sum of their harms; may be negative.
        parts: metric → layers whose harm it measures; empty if all layers have the same metric.
        metrics: metric → harm of all layers by it, for the metrics of the parts and for further
            ones that an allocator may try.

    Raises:
        NonFiniteValues: a score is NaN or infinite.
    """

    choices: Choices
    harm: Table
    pairs: Mapping[tuple[str, str], np.ndarray] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    metrics: Mapping[str, Table] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, options in self.choices.layers.items():
            if not np.isfinite(self.harm[name]).all():
                raise NonFiniteValues(
                    f"the score of layer '{name}' is NaN or infinite; check its weights and the "
                    "calibration data."
                )
            assert self.harm[name].shape == (len(options),)

    def __repr__(self) -> str:
        count = sum(map(len, self.choices.layers.values()))
        worst = max(self.harm, key=lambda name: float(self.harm[name].max()), default=None)
        named = "" if worst is None else f", worst '{one_line(worst)}'"
        return f"Scores({count} choices of {len(self.harm)} layers{named})"

    def _repr_html_(self) -> str:
        rows = []
        for name in sorted(self.harm, key=lambda name: -float(self.harm[name].max())):
            harm, options = self.harm[name], self.choices.layers[name]
            worst = options[int(harm.argmax())]
            widths = (worst.weight, worst.input, worst.accumulator)
            rows.append((name, len(options), float(harm.min()), float(harm.max()), *widths))
        most = ("most harm", "at weight", "at input", "at accumulator")
        return html_table(repr(self), ("layer", "choices", "least harm", *most), rows)


def from_importance(choices: Choices, importance: Mapping[str, float]) -> Scores:
    """Scores of a method that ranks layers without regard to bits: maximizing Σ Ω_l·b_l as harm.

    Harm is Ω_l·(most bits − bits), b being the sum of weight and input bits (LRP-QViT, arXiv
    2401.11243, section 3.3). It says nothing about accumulators.

    Args:
        choices: what to score.
        importance: layer → Ω, at least 0.
    """
    harm = {}
    for name, options in choices.layers.items():
        bits = np.array([(c.weight_bits or 0) + (c.input_bits or 0) for c in options], dtype=float)
        harm[name] = importance[name] * (bits.max() - bits)
    return Scores(choices, harm)
