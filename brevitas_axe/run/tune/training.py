"""The last trial of a tuning: the best model, fine-tuned in the time that is left."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.tune.decisions import written
from brevitas_axe.run.tune.goal import Trial
from brevitas_axe.run.tune.measure import Asked, Trials


def finetuned(asked: Asked, trials: Trials, best: Trial, training: Iterable[Any]) -> Trial:
    """The trial after as many epochs as there is time for, the first of which tells how many.

    Training is as resumable as `finetune` is, and its best epoch may be none.
    """
    tuning, run, result = asked.tuning, asked.run, trials.result(best)
    for trial in trials.done:
        if trial.trained and trial.configuration == best.configuration:
            return trial
    journal, key = trials.journal, written(best.configuration)
    loader = training if isinstance(training, Sequence) else list(training)

    def train(epochs: int) -> Any:
        assert run.state is not None, "a tuning has a folder"
        return finetune(
            result,
            loader,
            epochs=epochs,
            learning_rate=tuning.learning_rate,
            validation=asked.judge,
            state=Path(run.state) / f"training-{epochs}",
            seed=tuning.seed,
            progress=run.progress,
            log=run.log,
        )

    begun = time.perf_counter()
    found = train(1)
    known = (
        record[1] for kind, *record in journal.records if kind == "epochs" and record[0] == key
    )
    epochs = next(known, None)
    if epochs is None:
        left = 60 * (tuning.minutes or math.inf) - trials.seconds
        left -= time.perf_counter() - begun
        epoch = max(entry["seconds"] for entry in found.history)
        epochs = int(min(tuning.epochs, max(left / epoch, 1)))
        journal.add("epochs", key, epochs)  # so that a killed run trains as long
    if epochs > 1:
        longer = train(epochs)
        found = max(found, longer, key=lambda each: each.history[each.best_epoch]["score"])
    trial = replace(
        best,
        value=asked.judge(found.model),
        seconds=time.perf_counter() - begun,
        trained=len(found.history) - 1,
    )
    trials.keep(trial, found)
    return trial
