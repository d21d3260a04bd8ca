"""Measured loss of whole plans, their weights solved under the plan's budgets."""

from __future__ import annotations

from brevitas_axe.methods.sensitivity.budgeted import LayerMoments, moments, part, unlimited
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.twin import Substitute
from brevitas_axe.plan import LayerPrecision, Plan


class PlanLoss:
    """Rise of the metric over the float model's when every layer is as a plan says.

    Layers are solved on the float model's inputs, each once per choice, and kept; so are the
    moments of all layers.

    Args:
        case: plans may use its choices.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self._moments: dict[str, LayerMoments] = {}
        self._parts: dict[tuple[str, LayerPrecision], Substitute] = {}
        self._base = case.loss({})

    def __call__(self, plan: Plan) -> float:
        return self.case.loss({n: self._part(n, c) for n, c in plan.layers.items()}) - self._base

    def _part(self, name: str, choice: LayerPrecision) -> Substitute:
        if not self._moments:
            for known in moments(self.case, self.case.names):
                self._moments.update(known)
        key = name, unlimited(self.case, name, choice)
        if key not in self._parts:
            self._parts[key] = part(self.case, name, key[1], self._moments[name])
        return self._parts[key]
