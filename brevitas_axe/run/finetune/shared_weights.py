"""Training of weights that all widths share: every step at widths of its own.

The objective of a search for widths (FLIQS, arXiv 2308.03290). Its value is the reward
-loss - β·|1 - cost/target|, and every question is one step of training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.allocate import Problem
from brevitas_axe.methods.allocate.problem import Assignment
from brevitas_axe.methods.search.protocol import Configuration, Space
from brevitas_axe.model.apply.switches import Switches
from brevitas_axe.recipe import Log
from brevitas_axe.run.finetune.checkpoint import SavedRun, load_model_state, model_state, seeded
from brevitas_axe.run.finetune.groups import parameter_groups
from brevitas_axe.run.finetune.losses import Loss, label_loss, on_device, run
from brevitas_axe.run.finetune.run import Optimizer, check_finite, cosine, length
from brevitas_axe.run.logs import log_numbers

# Most values of one decision; layers that read one activation decide together.
_MOST_VALUES = 4096


@dataclass(frozen=True)
class Training:
    """How the shared weights are trained, and how much the cost counts.

    Attributes:
        epochs, learning_rate, scale_learning_rate, loss, optimizer, scheduler: as `finetune` takes
            them.
        cost_weight: β of the reward -loss - β·|1 - cost/target|.
        seed: of order, dropout, the plans that are drawn, and whatever else draws numbers.

    Raises:
        InvalidOption: no epochs, or a negative weight.
    """

    epochs: int = 10
    learning_rate: float = 1e-3
    scale_learning_rate: float | None = None
    loss: Loss | None = None
    optimizer: Callable[[list[dict[str, Any]]], Optimizer] = torch.optim.AdamW
    scheduler: Callable[[Optimizer, int], Any] = cosine
    cost_weight: float = 2.0
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.epochs) is not int or self.epochs < 1:
            raise InvalidOption(
                f"training takes a whole number of epochs from 1, not {self.epochs!r}."
            )
        if not self.cost_weight >= 0:
            raise InvalidOption(f"the cost's weight cannot be {self.cost_weight}; give 0 or more.")


class Decisions:
    """A problem as a space: layers that read one activation are one decision.

    Args:
        problem: with one cost, whose budget is the target.

    Raises:
        InvalidOption: a decision with too many values.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        [self._cost] = problem.costs.values()
        [self.target] = problem.budgets.values()
        values = {}
        for unit in problem.units:
            name = " + ".join(problem.names[i] for i in unit)
            options = [problem.options[i] for i in unit]
            if prod(map(len, options)) > _MOST_VALUES:
                raise InvalidOption(
                    f"layers {name} read one activation and so decide together, but have more "
                    f"than {_MOST_VALUES} combinations; offer fewer widths."
                )
            values[name] = tuple(
                each for each in product(*options) if len({c.input for c in each}) == 1
            )
        self.space = Space(values)

    def assignment(self, configuration: Configuration) -> Assignment:
        """Index of every layer's choice."""
        found = [0] * len(self.problem.names)
        for unit, value in zip(self.problem.units, configuration.values(), strict=True):
            for i, precision in zip(unit, value, strict=True):
                found[i] = self.problem.options[i].index(precision)
        return tuple(found)

    def cost(self, assignment: Assignment) -> float:
        """Cost of the plan, for one sample."""
        return self._cost.total(assignment)


class SharedWeights:
    """The objective: one step of training at a plan; its value is the reward. To be closed.

    Args:
        model: in training; has the switches.
        loader: of training, iterated once per epoch.
        decisions: what a configuration means.
        switches: of the model.
        training: settings.
        saved_run: where progress is kept; a run that is there already is continued.
        progress: show a bar.
        log: gets the numbers of every step, as that of `Run`.

    Attributes:
        history: one entry for every epoch that is done, number 0 before training.
        asked: every configuration so far and its reward.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Any],
        decisions: Decisions,
        switches: Switches,
        training: Training,
        saved_run: SavedRun | None,
        progress: bool,
        log: Log | None = None,
    ) -> None:
        self._model, self._loader, self._training = model, loader, training
        self._decisions, self._switches, self._saved_run = decisions, switches, saved_run
        self._log = log
        self.history: list[dict[str, Any]] = [_entry(0, None, None, None, None, 0.0)]
        self.asked: list[tuple[Configuration, float]] = []
        saved = None if saved_run is None else saved_run.load()
        if saved is not None:
            load_model_state(model, saved["model"])  # before the optimizer sees the parameters
        rates = training.learning_rate, training.scale_learning_rate
        self._optimizer = training.optimizer(parameter_groups(model.train(), *rates))
        self._steps = training.epochs * length(loader)
        self._schedule = training.scheduler(self._optimizer, self._steps)
        if saved is not None:
            self._optimizer.load_state_dict(saved["optimizer"])
            self._schedule.load_state_dict(saved["scheduler"])
            self.history = saved["history"]
            space = decisions.space
            self.asked = [(space.at(tuple(p)), reward) for p, reward in saved["asked"]]
        elif saved_run is not None:
            self._save()
            saved_run.check()
        self._sums = torch.zeros(3, dtype=torch.float64)
        title = f"{self._steps} steps"
        self._bar = tqdm(None, title, self._steps, disable=not progress, leave=False)
        self._bar.update(len(self.asked))
        self._batches = self._epochs()

    @property
    def left(self) -> int:
        """Steps that are still to be made."""
        return self._steps - len(self.asked)

    def __call__(self, configuration: Configuration) -> float:
        batch = next(self._batches)
        assignment = self._decisions.assignment(configuration)
        self._switches.set(self._decisions.problem.plan(assignment))
        self._optimizer.zero_grad()
        value = (self._training.loss or label_loss)(run(self._model, batch), batch)
        check_finite(value, f"step {len(self.asked) + 1}")
        value.backward()
        self._optimizer.step()
        self._schedule.step()
        loss = float(value.detach())
        share = self._decisions.cost(assignment) / self._decisions.target
        reward = -loss - self._training.cost_weight * abs(1 - share)
        self._sums += torch.tensor([loss, reward, share], dtype=torch.float64)
        self.asked.append((dict(configuration), reward))
        told = {"loss": loss, "reward": reward, "cost": share}
        log_numbers(self._log, "step", told, len(self.asked))
        self._bar.update()
        self._bar.set_postfix(loss=f"{loss:.4g}", cost=f"{share:.3g}")
        return reward

    def finish(self) -> None:
        """Ends the last epoch, whose steps have been made."""
        next(self._batches, None)

    def close(self) -> None:
        """Restores the random generators that an epoch has seeded, wherever it was broken off."""
        self._batches.close()
        self._bar.close()

    def _epochs(self) -> Generator[Any, None, None]:
        """The batches of all epochs that are left, with what an epoch ends with."""
        for epoch in range(len(self.history), self._training.epochs + 1):
            begun, before = time.perf_counter(), len(self.asked)
            self._sums.zero_()
            with seeded(self._training.seed * 1_000_003 + epoch, (self._loader,)):
                yield from on_device(self._model, self._loader)
            loss, reward, cost = (self._sums / (len(self.asked) - before)).tolist()
            rate, seconds = self._optimizer.param_groups[0]["lr"], time.perf_counter() - begun
            self.history.append(_entry(epoch, loss, reward, cost, rate, seconds))
            self._save()

    def _save(self) -> None:
        if self._saved_run is None:
            return
        space = self._decisions.space
        self._saved_run.save(
            {
                "model": model_state(self._model),
                "optimizer": self._optimizer.state_dict(),
                "scheduler": self._schedule.state_dict(),
                "history": self.history,
                "asked": [(space.positions(each), reward) for each, reward in self.asked],
            }
        )


def _entry(
    epoch: int,
    loss: float | None,
    reward: float | None,
    cost: float | None,
    rate: float | None,
    seconds: float,
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": loss,
        "reward": reward,
        "cost": cost,
        "learning_rate": rate,
        "seconds": seconds,
    }
