"""A check's finding about one layer."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

from brevitas_axe.display import html_table, one_line

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


class Findings(list[Finding]):
    """Findings in order of execution, which show themselves in few lines; empty is good."""

    def __repr__(self) -> str:
        counts = Counter(finding.severity for finding in self)
        said = [f"{number} {severity}" for severity, number in counts.items()]
        if self:
            said.append(f"first {one_line(self[0].sentence)}")
        return f"Findings({', '.join(said) or 'none'})"

    def _repr_html_(self) -> str:
        headings = ("layer", "severity", "rule", "problem", "way out")
        rows = ((f.layer, f.severity, f.rule, f.problem, f.way_out) for f in self)
        title = f"{len(self)} finding{'s' * (len(self) != 1)}"
        return html_table(title, headings, rows)
