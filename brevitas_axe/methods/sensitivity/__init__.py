"""How much the loss rises by a layer's widths: one scorer per file."""

from brevitas_axe.methods.sensitivity.case import Case, make_case
from brevitas_axe.methods.sensitivity.choices import make_choices
from brevitas_axe.methods.sensitivity.metrics import METRICS, Metric, find_metric
from brevitas_axe.methods.sensitivity.plan_loss import PlanLoss
from brevitas_axe.methods.sensitivity.protocol import GroupingScorer, Scorer
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.scoring import score
from brevitas_axe.methods.sensitivity.trials import Trials

__all__ = [
    "METRICS",
    "Case",
    "GroupingScorer",
    "Metric",
    "PlanLoss",
    "Scorer",
    "Scores",
    "Trials",
    "find_metric",
    "make_case",
    "make_choices",
    "score",
]
