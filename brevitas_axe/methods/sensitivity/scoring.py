"""One call that scores a model, by any scorer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_axe.methods.sensitivity.case import fingerprint, make_case
from brevitas_axe.methods.sensitivity.metrics import Metric
from brevitas_axe.methods.sensitivity.protocol import Scorer
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.plan import Choices
from brevitas_axe.recipe import Function
from brevitas_axe.registry import method


def score(
    model: nn.Module,
    calibration: Iterable[Any],
    choices: Choices,
    scorer: str | Scorer = "local",
    *,
    metric: str | Metric = "kl",
    exclude: tuple[str, ...] = (),
    state: str | Path | None = None,
    workers: int = 1,
    seed: int = 0,
    progress: bool = False,
    function: Function | None = None,
) -> Scores:
    """Scores every choice of every layer. The model is left as it is, bit for bit.

    Args:
        model: a calibrated Brevitas model.
        calibration: items as `brevitas_axe.model.prepare.as_batches` takes them; labels are kept
            for metrics and scorers that use them.
        choices: to be scored. Layers that read one activation are tied in the choices of the
            scores.
        scorer: registered name, with options or without ("NAME:key=value"), or a scorer.
        metric: "kl" (to the model's own output), "mse", "cross_entropy" or a `Metric`.
        exclude: names of layers to leave out.
        state: folder for results; a killed run continues from it.
        workers: how many trials run at once.
        seed: of all randomness.
        progress: show a progress bar.
        function: what the model's own output is, as the recipe's; None decides as `quantize` does.
    """
    found = method("sensitivity", scorer)
    needs_inputs = getattr(found, "needs_inputs", True)
    case = make_case(model, calibration, choices, metric, seed, exclude, needs_inputs, function)
    return found(case, Trials(fingerprint(case, found), state, workers, progress))
