"""How much a layer's widths hurt: one scorer per file."""

from brevitas_axe.methods.sensitivity.case import Case, make_case
from brevitas_axe.methods.sensitivity.choices import make_choices
from brevitas_axe.methods.sensitivity.metrics import METRICS, Metric, find_metric
from brevitas_axe.methods.sensitivity.plan_loss import PlanLoss
from brevitas_axe.methods.sensitivity.protocol import find_scorer, score, scorers
from brevitas_axe.methods.sensitivity.scores import Scorer, Scores
from brevitas_axe.methods.sensitivity.trials import Trials

__all__ = [
    "METRICS",
    "Case",
    "Metric",
    "PlanLoss",
    "Scorer",
    "Scores",
    "Trials",
    "find_metric",
    "find_scorer",
    "make_case",
    "make_choices",
    "score",
    "scorers",
]
