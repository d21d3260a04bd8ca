"""Importance by a layer's place in the model, without any data (QuantMoE-Bench, arXiv 2406.08155).

Found there for mixtures of experts: attention needs more bits than feed-forward layers, experts
that all tokens pass more than those that some are routed to, and early blocks more than late ones.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.registry import Facts, check_expressions

_NUMBER = re.compile(r"(?:^|\.)(\d+)(?:\.|$)")


@dataclass(frozen=True)
class Structure:
    """Importance is 3 for attention, 2 for other layers and 1 for routed experts.

    Added is less than 1, the more the earlier the layer's block is.

    Attributes:
        attention: regular expression that is found in the names of attention layers.
        routed: the same for layers of routed experts.

    Raises:
        InvalidOption: no regular expression.
    """

    attention: str = "attn|attention"
    routed: str = r"experts\.\d"
    needs_inputs = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="names of layers",
        export="finn",
        source="arXiv 2406.08155",
    )

    def __post_init__(self) -> None:
        check_expressions(self, "attention", "routed")

    def __call__(self, case: Case, trials: Trials) -> Scores:
        work = [("place", (self, tuple(case.names)))]
        [places] = trials.map(_importance, work)
        assert isinstance(places, list)
        return from_importance(case.choices, dict(zip(case.names, places, strict=True)))

    def of(self, name: str) -> float:
        """What the kind of a layer counts."""
        if re.search(self.attention, name):
            return 3.0
        return 1.0 if re.search(self.routed, name) else 2.0


def _importance(scorer: Structure, names: Sequence[str]) -> list[float]:
    blocks = [_block(name) for name in names]
    count = max(blocks) + 1
    return [
        scorer.of(name) + (count - block) / (count + 1)
        for name, block in zip(names, blocks, strict=True)
    ]


def _block(name: str) -> int:
    """The first number in a name."""
    found = _NUMBER.search(name)
    return int(found[1]) if found else 0


structure = Structure()
