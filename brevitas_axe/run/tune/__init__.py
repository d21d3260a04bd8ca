"""The best model within limits: widths and recipe are searched by the user's own measure.

One trial is one solve and its validation: `decisions` says what is chosen from, `measure` makes a
trial, `goal` compares trials, `loop` makes them in turn, `training` may follow, and `run` has the
public function.
"""

from brevitas_axe.run.tune.goal import Trial
from brevitas_axe.run.tune.options import Tuning
from brevitas_axe.run.tune.run import TuneResult, tune

__all__ = ["Trial", "TuneResult", "Tuning", "tune"]
