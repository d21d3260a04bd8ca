"""One call that tunes a model: what is asked for, what is known already, and the result."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_axe.display import html_table
from brevitas_axe.errors import InvalidOption
from brevitas_axe.files import Journal
from brevitas_axe.methods.allocate import check_budget
from brevitas_axe.methods.search.protocol import Record, Space
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.plain import check_open
from brevitas_axe.model.prepare import as_batches
from brevitas_axe.model.running import evaluating
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.recipe import MAX_CYCLES, Recipe, Run
from brevitas_axe.run.checks import check_disk
from brevitas_axe.run.request import Validate, requested
from brevitas_axe.run.saving.save import Result
from brevitas_axe.run.tune.decisions import decisions_of, features_of
from brevitas_axe.run.tune.goal import Goal, Trial, check_drop
from brevitas_axe.run.tune.loop import Loop
from brevitas_axe.run.tune.measure import Asked, Trials
from brevitas_axe.run.tune.options import Tuning
from brevitas_axe.run.tune.training import finetuned
from brevitas_axe.run.validated import in_float


@dataclass(frozen=True, repr=False)
class TuneResult:
    """What `tune` returns.

    Attributes:
        result: of `quantize` for the best trial, or of `finetune` where training made it better.
        best: that trial.
        plain: the trial of a plain call of `quantize`, with uniform widths.
        trials: all of them, in order.
        unquantized: value of the float model.
        met: whether the best trial is within the drop that was allowed.
    """

    result: Result
    best: Trial
    plain: Trial
    trials: tuple[Trial, ...]
    unquantized: float
    met: bool

    @property
    def model(self) -> nn.Module:
        return self.result.model

    @property
    def plan(self) -> Plan:
        return self.result.plan

    @property
    def certificate(self) -> Certificate:
        return self.result.certificate

    def __repr__(self) -> str:
        return (
            f"TuneResult of {len(self.trials)} trials: {self.best.bits} with {self.best.value:.6g}"
            f", plain widths {self.plain.value:.6g}, float {self.unquantized:.6g}\n"
            f"  {self.certificate!r}"
        )

    def _repr_html_(self) -> str:
        costs = list(dict.fromkeys(name for trial in self.trials for name in trial.costs))
        headings = ["trial", "bits", "value", *costs, "epochs", "seconds", "remark"]
        rows = [
            (n, t.bits, t.value, *map(t.costs.get, costs), t.trained, t.seconds, self._remark(t))
            for n, t in enumerate(self.trials, start=1)
        ]
        title = repr(self).partition("\n")[0]
        return f"{html_table(title, headings, rows)}\n{self.result._repr_html_()}"

    def _remark(self, trial: Trial) -> str:
        if trial == self.best:
            return "chosen"
        return trial.refused or ("" if trial.fits else "over the budget")


def tune(
    model: nn.Module,
    data: Iterable[Any],
    *,
    validate: Validate,
    accumulator_bit_width: int | None = None,
    tile_size: int | None = None,
    budget: Mapping[str, float | str] | None = None,
    max_drop: float | str | None = None,
    training: Iterable[Any] | None = None,
    tuning: Tuning = Tuning(),
    run: Run = Run(),
) -> TuneResult:
    """Searches widths and recipe for the model that is best by a function of the user's.

    The first trial is a plain call of `quantize` with uniform widths, so the result is never worse
    by that function than doing nothing. Because the function chooses, its value for the result is
    too good: judge the result on data that it has not seen.

    Args:
        model: as `quantize` takes it; not modified.
        data: batches of calibration.
        validate: function(model) → how good it is, larger is better.
        accumulator_bit_width: P for every layer.
        tile_size: inputs per inner accumulator, None for whole dot products.
        budget: cost → most that it may be for one sample, or a share of what W4A4 costs.
        max_drop: the cheapest model is looked for whose value is lower than the float model's by so
            much at most: a number, or a share of the float model's value ("1%").
        training: batches with labels, on which the best model is fine-tuned in the end; what is not
            better by `validate` is not kept.
        tuning: how it searches, and for how long.
        run: with a folder as `state`, every trial is kept, and a killed tuning goes on with the
            same questions; `workers` solve the rows of a layer.

    Returns:
        The best model with its proof, and all trials.

    Raises:
        InvalidOption: nothing is asked for, or nothing can meet it.
        AxeError: as `quantize`, where plain widths cannot be solved at all.
    """
    budget = dict(budget or {})
    _check(model, validate, accumulator_bit_width, budget, max_drop)
    recipe = _recipe(tuning, run)
    widths = {"accumulator_bit_width": accumulator_bit_width, "tile_size": tile_size}
    requested(None, recipe, tuning.exclude, run, widths)  # refuses before any work
    decisions = decisions_of(
        model, recipe, accumulator_bit_width, max_drop is not None, tuning.decisions
    )
    check_open(model)
    check_disk(model, run)
    batches = as_batches(data, model)
    features = features_of(model, accumulator_bit_width, tile_size)
    with ExitStack() as stack:
        place = run.state or stack.enter_context(tempfile.TemporaryDirectory())
        fingerprint = Fingerprint({**widths, "budget": budget, "recipe": repr(recipe)})
        fingerprint.add((model, batches, list(tuning.exclude)))
        folder = Path(place) / f"tune-{fingerprint.hexdigest()[:16]}"
        asked = Asked(
            model, batches, validate, accumulator_bit_width, tile_size, budget, tuning,
            replace(run, state=folder),
        )  # fmt: skip
        trials = Trials(asked, folder, saved=run.state is not None)
        others = [r for each in tuning.earlier for r in _records(Path(each), folder)]
        space = Space(decisions, features, others)
        unquantized = _case(trials.journal, asked, features)
        loop = Loop(asked, trials, space, Goal(unquantized, max_drop, tuning.cost))
        best, done = loop.search(training is not None), loop.trials
        if training is not None:
            better = finetuned(asked, trials, best, training)
            done.append(better)
            best = max(best, better, key=loop.goal.score)  # of equal ones the first
        assert loop.first is not None, "plain widths are measured first"
        result, met = trials.result(best), loop.goal.meets(best)
        return TuneResult(result, best, loop.first, tuple(done), unquantized, met)


def _check(
    model: Any,
    validate: Any,
    accumulator: int | None,
    budget: Mapping[str, float | str],
    drop: float | str | None,
) -> None:
    """Refuses what cannot be asked for, before any work is done."""
    if not isinstance(model, nn.Module):
        raise InvalidOption(f"tune takes a torch.nn.Module, not a {type(model).__name__}.")
    if not callable(validate):
        raise InvalidOption("validate must be a function of the model that returns a number.")
    if accumulator is None and not budget and drop is None:
        raise InvalidOption(
            "tune needs a limit: an accumulator width, a budget such as {'finn_lut': '80%'}, or "
            "the largest drop."
        )
    Recipe(widths="auto", budget=budget)  # refuses a limit that is none
    for name in budget:
        if name == MAX_CYCLES:
            raise InvalidOption(f"tune compares costs without folding; leave {MAX_CYCLES} out.")
        check_budget(name)
    if drop is not None:
        check_drop(drop)


def _recipe(tuning: Tuning, run: Run) -> Recipe:
    """The recipe to start from.

    Raises:
        InvalidOption: it decides what `tune` decides.
    """
    recipe = Recipe.of(tuning.recipe)
    if recipe.widths is not None:
        raise InvalidOption(
            "tune chooses widths itself; leave widths and budget out of the recipe."
        )
    return recipe


def _case(journal: Journal, asked: Asked, features: Mapping[str, float]) -> float:
    """The float model's value, measured once."""
    for kind, *record in journal.records:
        if kind == "case":
            return record[1]
    with evaluating(asked.model):
        value = in_float(asked.validate, asked.model)
    journal.add("case", dict(features), value)
    return value


def _records(earlier: Path, own: Path) -> list[Record]:
    """Results in the state of another tuning, as shares of its float model's value."""
    found = []
    for path in sorted(earlier.glob("tune-*/trials.jsonl")):
        if path.parent == own:
            continue
        records = Journal(path, "trials").records
        case = next((record for kind, *record in records if kind == "case"), None)
        if case is None:
            continue
        goal = Goal(case[1])
        trials = (Trial(**record[0]) for kind, *record in records if kind == "trial")
        found += [
            Record(case[0], trial.configuration, goal.score(trial))
            for trial in trials
            if not trial.trained and not math.isnan(goal.score(trial))
        ]
    return found
