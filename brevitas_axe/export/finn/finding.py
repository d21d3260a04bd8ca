"""A check's finding about one layer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

# refused: the target (FINN, hls4ml) raises, never ends, or leaves the layer in float.
# wrong: the target builds it without an error, but it computes something else.
# tie: equal except for values halfway between two levels, up to float rounding.
# note: the same, where only a coincidence of scale and offset puts a sum there.
Severity = Literal["refused", "wrong", "tie", "note"]


@dataclass(frozen=True)
class Finding:
    """One reason why a target would not build a file, or would build something else.

    Attributes:
        layer: module it concerns, or the node where the file names no module.
        rule: short name of the rule, stable over versions.
        severity: how the target fails.
        problem: what is wrong, layer named, without a full stop.
        way_out: what to do about it, without a full stop.
    """

    layer: str
    rule: str
    severity: Severity
    problem: str
    way_out: str

    @property
    def sentence(self) -> str:
        """Problem and way out in one sentence."""
        return f"{self.problem}; {self.way_out}."

    def to_dict(self) -> dict[str, str]:
        """For JSON."""
        return asdict(self)
