"""One trial: a configuration is solved, judged and priced, and the best results are kept."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_axe.errors import AxeError, InvalidOption, InvalidState
from brevitas_axe.files import Journal
from brevitas_axe.methods.search.protocol import Configuration
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import Plan
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run.costs import costs_of
from brevitas_axe.run.logs import log_numbers
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.request import Validate
from brevitas_axe.run.result import QuantizeResult
from brevitas_axe.run.saving.folder import is_saved
from brevitas_axe.run.saving.load import load
from brevitas_axe.run.saving.save import Result, save
from brevitas_axe.run.tune.decisions import (
    CALIBRATION,
    PLAIN,
    RANKS,
    SHARE,
    WIDTHS,
    keywords_of,
    with_transforms,
    written,
)
from brevitas_axe.run.tune.goal import Trial
from brevitas_axe.run.tune.options import Tuning
from brevitas_axe.run.validated import number
from brevitas_axe.run.widths import first_samples


@dataclass(frozen=True)
class Asked:
    """What is asked of every trial.

    Attributes:
        model: float, or with quantizers.
        batches: of calibration.
        validate: tells how good a model is.
        accumulator, tile: of all layers, unless they are decided.
        budget: cost → limit.
        tuning: has recipe, exclusions and cost.
        run: what changes no integer, with a folder as state.
    """

    model: nn.Module
    batches: Sequence[Batch]
    validate: Validate
    accumulator: int | None
    tile: int | None
    budget: Mapping[str, float | str]
    tuning: Tuning
    run: Run

    def inner(self, name: str) -> Run:
        """The run of one solve, with a folder of its own inside the state."""
        assert self.run.state is not None, "a tuning has a folder"
        return replace(self.run, state=Path(self.run.state) / name, progress=False, log=None)

    def widths(self, configuration: Configuration) -> dict[str, Any]:
        """Accumulator and tile, as keywords of `quantize`."""
        own = {"accumulator_bit_width": self.accumulator, "tile_size": self.tile}
        return {name: configuration.get(name, value) for name, value in own.items()}

    @property
    def recipe(self) -> Recipe:
        return Recipe.of(self.tuning.recipe)

    def judge(self, model: nn.Module) -> float:
        """How good a model is, evaluated as it is used."""
        return number(self.validate, model)


class Plans:
    """The plans that automatic widths try, the best first, for each accumulator and budget.

    They are found once, by the fast quality, and kept in the journal.
    """

    def __init__(self, asked: Asked, journal: Journal) -> None:
        self._asked, self._journal = asked, journal

    def __call__(self, configuration: Configuration) -> tuple[list[Plan], dict[str, float]]:
        """Plans that fit the budget, and the limits of its costs.

        Raises:
            InvalidOption: nothing fits.
        """
        asked = self._asked
        widths, budget = asked.widths(configuration), dict(asked.budget)
        if SHARE in configuration:
            budget.setdefault(asked.tuning.cost, configuration[SHARE])
        key = written({**widths, "budget": budget})
        for kind, *record in self._journal.records:
            if kind == "plans" and record[0] == key:
                return [Plan.from_json(text) for text in record[1]], record[2]
        begun = time.perf_counter()
        result = quantize(
            asked.model,
            as_items(asked.batches),
            recipe=replace(asked.recipe, widths="auto", budget=budget, quality="fast"),
            exclude=tuple(asked.tuning.exclude),
            run=asked.inner("plans"),
            validate=None if SHARE in configuration else asked.judge,
            **widths,
        )
        order = sorted(range(len(result.plans)), key=lambda i: _loss(result.tried[i]))
        plans = [result.plans[i] for i in order]
        shares = {row["cost"]: row["limit"] for row in result.shares}
        limits = {n: shares.get(n, limit) for n, limit in budget.items() if n in asked.budget}
        texts = [plan.to_json() for plan in plans]
        self._journal.add("plans", key, texts, limits, time.perf_counter() - begun)
        return plans, limits


class Trials:
    """All trials of a tuning: kept in a journal, and the best models in folders beside it.

    Args:
        asked: of every trial.
        folder: of the journal.
        saved: whether the best models are written, for a run that is killed.
    """

    def __init__(self, asked: Asked, folder: Path, saved: bool) -> None:
        self._asked, self._folder, self._saved = asked, folder, saved
        self.journal = Journal(folder / "trials.jsonl", "trials")
        self.plans = Plans(asked, self.journal)
        self._results: dict[str, Result] = {}

    @property
    def done(self) -> list[Trial]:
        """Trials in the order in which they were made, those of killed runs included."""
        return [Trial(**record[0]) for kind, *record in self.journal.records if kind == "trial"]

    @property
    def seconds(self) -> float:
        """Time that was spent so far."""
        found = {"trial": lambda record: record[0]["seconds"], "plans": lambda record: record[3]}
        return sum(found[kind](record) for kind, *record in self.journal.records if kind in found)

    def measure(self, configuration: Configuration) -> tuple[Trial, QuantizeResult | None]:
        """Solves and judges one configuration; what cannot be solved is a trial as well."""
        asked = self._asked
        solving = f"solve-{_digest(configuration)}"
        recorded = self.seconds
        begun = time.perf_counter()
        try:
            plan, limits = self._plan(configuration)
            result = quantize(
                asked.model,
                as_items(asked.batches, configuration.get(CALIBRATION, 1.0)),
                plan,
                with_transforms(asked.recipe, configuration),
                exclude=tuple(asked.tuning.exclude),
                run=asked.inner(solving),
                **{**keywords_of(configuration), **_of_no_plan(plan, asked.widths(configuration))},
            )
        except InvalidState:
            raise
        except AxeError as error:
            trial = Trial(dict(configuration), refused=str(error))
            return replace(trial, seconds=self._since(begun, recorded)), None
        value = asked.judge(result.model)
        names = dict.fromkeys((asked.tuning.cost, *asked.budget))
        found, _ = costs_of(result, [*names], lenient=True)
        costs = {name: each.total for name, each in found.items()}
        # Plans were made for the budget; plain widths were not.
        fits = plan is not None or all(costs[n] <= limit for n, limit in limits.items())
        shutil.rmtree(self._folder / solving, ignore_errors=True)
        seconds = self._since(begun, recorded)
        bits = bits_of(result.plan)
        return Trial(dict(configuration), value, costs, bits, seconds, fits=fits), result

    def keep(self, trial: Trial, result: Result | None) -> None:
        """Writes a trial, and before it the model where there is one to keep."""
        if result is not None:
            name = self._name(trial)
            # Training may turn out to be no better than what it began with.
            self._results = {**(self._results if trial.trained else {}), name: result}
            if self._saved:
                save(result, self._folder / name)
        told = {"value": trial.value, "seconds": trial.seconds, **trial.costs}
        log_numbers(self._asked.run.log, "trial", told, len(self.done))
        self.journal.add("trial", asdict(trial))

    def drop(self, trial: Trial) -> None:
        """Removes the model of a trial that is the best no longer."""
        shutil.rmtree(self._folder / self._name(trial), ignore_errors=True)

    def result(self, trial: Trial) -> Result:
        """The model of a trial; one that was not kept, because others were better, is solved again.

        Another goal than that of a killed run may need it.
        """
        name = self._name(trial)
        if name not in self._results and is_saved(self._folder / name):
            self._results[name] = load(self._folder / name, self._asked.model)
        elif name not in self._results:
            _, result = self.measure(trial.configuration)
            assert result is not None, "the same was solved before"
            self._results[name] = result
        return self._results[name]

    def _plan(self, configuration: Configuration) -> tuple[Plan | None, dict[str, float]]:
        """The plan of a configuration, None for plain widths; and the limits of the budget."""
        asked = self._asked
        rank = configuration[WIDTHS]
        if rank == PLAIN:
            return None, self.plans(configuration)[1] if asked.budget else {}
        plans, limits = self.plans(configuration)
        if RANKS.index(rank) >= len(plans):
            raise InvalidOption(f"automatic widths tried {len(plans)} plans; none is {rank}.")
        return plans[RANKS.index(rank)], limits

    def _since(self, begun: float, recorded: float) -> float:
        """Seconds since then, without those of plans that were recorded meanwhile."""
        return time.perf_counter() - begun - (self.seconds - recorded)

    def _name(self, trial: Trial) -> str:
        return f"result-{_digest({**trial.configuration, 'trained': trial.trained})}"


def bits_of(plan: Plan) -> str:
    """Mean bits of weights and inputs, such as W4A8."""
    found = ""
    for letter, name in (("W", "weight"), ("A", "input")):
        bits = [getattr(p, name) for p in plan.layers.values() if getattr(p, name) is not None]
        found += f"{letter}{sum(bits) / len(bits):.3g}" if bits else ""
    return found


def as_items(batches: Sequence[Batch], share: float = 1.0) -> list[Any]:
    """Batches as `quantize` takes them, with a share of the samples of each."""
    cut = [first_samples(b, math.ceil(share * _size(b))) if share < 1 else b for b in batches]
    return [args or kwargs for args, kwargs in cut]


def _size(batch: Batch) -> int:
    """Samples of a batch."""
    tensors = [v for v in (*batch[0], *batch[1].values()) if getattr(v, "ndim", 0)]
    return len(tensors[0]) if tensors else 1


def _of_no_plan(plan: Plan | None, widths: Mapping[str, Any]) -> dict[str, Any]:
    """Accumulator and tile where no plan has them."""
    return dict(widths) if plan is None else dict.fromkeys(widths)


def _loss(row: Mapping[str, Any]) -> float:
    """What is least for the best plan; infinite for what cannot be compared."""
    value = -row["validation"] if "validation" in row else row["divergence"]
    return math.inf if math.isnan(value) else value


def _digest(configuration: Configuration) -> str:
    return Fingerprint(dict(configuration)).hexdigest()[:16]
