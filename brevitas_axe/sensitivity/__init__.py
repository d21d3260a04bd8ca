"""How much a layer's widths hurt: one scorer per file."""

from brevitas_axe.sensitivity.activations import input_sources, set_input_bits, tied_layers
from brevitas_axe.sensitivity.candidates import make_choices
from brevitas_axe.sensitivity.case import Case, make_case
from brevitas_axe.sensitivity.facts import Facts
from brevitas_axe.sensitivity.metrics import METRICS, Metric, find_metric
from brevitas_axe.sensitivity.plan_loss import PlanLoss
from brevitas_axe.sensitivity.ranges import fit_ranges
from brevitas_axe.sensitivity.scores import Scorer, Scores
from brevitas_axe.sensitivity.scoring import find_scorer, score, scorers
from brevitas_axe.sensitivity.trials import Trials

__all__ = [
    "METRICS",
    "Case",
    "Facts",
    "Metric",
    "PlanLoss",
    "Scorer",
    "Scores",
    "Trials",
    "find_metric",
    "find_scorer",
    "fit_ranges",
    "input_sources",
    "make_case",
    "make_choices",
    "score",
    "scorers",
    "set_input_bits",
    "tied_layers",
]
