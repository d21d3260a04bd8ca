"""Fine-tuning with a certificate at every epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from brevitas.proxy.float_parameter_quant import WeightFloatQuantProxyFromInjectorBase
from brevitas.proxy.float_runtime_quant import ActFloatQuantProxyFromInjectorBase
from torch import Tensor, nn
from tqdm.auto import tqdm

from brevitas_axe.display import html_table
from brevitas_axe.errors import EmptyCalibration, InvalidOption, NonFiniteValues
from brevitas_axe.model.attention_products import certified
from brevitas_axe.model.fingerprint import Fingerprint
from brevitas_axe.model.layers import find_layers
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.quantizers.a2q import a2q_kind
from brevitas_axe.model.running import copied
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.recipe import Log, Recipe
from brevitas_axe.run.checks import check_training
from brevitas_axe.run.finetune.balls import accumulator_penalty
from brevitas_axe.run.finetune.checkpoint import SavedRun, load_model_state, model_state, seeded
from brevitas_axe.run.finetune.groups import parameter_groups
from brevitas_axe.run.finetune.losses import (
    Loss,
    accuracy,
    label_loss,
    mean_loss,
    on_device,
    run,
)
from brevitas_axe.run.logs import log_numbers
from brevitas_axe.run.result import BlocksResult, QuantizeResult

Optimizer = torch.optim.Optimizer
_FLOATS = WeightFloatQuantProxyFromInjectorBase | ActFloatQuantProxyFromInjectorBase
Validation = Iterable[Any] | Callable[[nn.Module], float]


@dataclass(frozen=True)
class FinetuneResult:
    """What `finetune` returns.

    Attributes:
        model: the trained model of the best epoch, in evaluation mode.
        history: one entry per epoch, number 0 before training: epoch, loss, penalty (means over
            the epoch), score, learning_rate, certified, accumulator_bits (the widest), seconds.
        certificate: proof of that model.
        best_epoch: number of that epoch.
        plan: the widths that it holds.
        recipe: of the result that was trained on; None where a bare model was.
        exclude: names that stay out of the certificate's verdict.
        example: arguments of one forward, with which the certificate is given again.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    certificate: Certificate
    best_epoch: int
    plan: Plan
    recipe: Recipe | None = None
    exclude: tuple[str, ...] = ()
    example: Batch | None = None

    def __repr__(self) -> str:
        return f"{self._head}\n  {self.certificate!r}"

    def _repr_html_(self) -> str:
        headings = list(dict.fromkeys(key for entry in self.history for key in entry))
        rows = [[entry.get(key) for key in headings] for entry in self.history]
        return f"{html_table(self._head, headings, rows)}\n{self.certificate._repr_html_()}"

    @property
    def _head(self) -> str:
        best, last = self.best_epoch, len(self.history) - 1
        return f"FinetuneResult of {type(self.model).__name__}: epoch {best} of {last} is the best"


def accumulator_plan(model: nn.Module, exclude: tuple[str, ...] = ()) -> Plan:
    """The accumulator widths and tiles that the quantizers of a model keep."""
    layers = {}
    for name, layer in find_layers(model, exclude, tile_scales=True).items():
        proxy = layer.weight_quant
        if a2q_kind(layer) is not None:
            width = int(proxy.tensor_quant.pre_scaling_impl.accumulator_bit_width())
            layers[name] = LayerPrecision(accumulator=width)
        else:
            layers[name] = LayerPrecision(
                accumulator=getattr(proxy, "accumulator_bit_width", None),
                tile=getattr(proxy, "accumulator_tile_size", None),
            )
    return Plan(layers)


def _with_bits(plan: Plan, model: nn.Module) -> Plan:
    """The same plan with the bits that weights and inputs have."""
    modules: dict[str, Any] = dict(model.named_modules())
    layers = {}
    for name, precision in plan.layers.items():
        proxy = modules[name].weight_quant
        arrives = getattr(proxy, "input_range", None)
        layers[name] = replace(
            precision,
            weight=int(proxy.tensor_quant.msb_clamp_bit_width_impl()),
            input=None if arrives is None else arrives.bit_width,
        )
    return Plan(layers)


def _check_integers(model: nn.Module) -> None:
    """Raises InvalidOption for floating-point formats: nothing holds their sums in training."""
    for name, module in model.named_modules():
        known = isinstance(module, _FLOATS)
        if known and module.is_quant_enabled:  # type: ignore[union-attr]
            raise InvalidOption(
                f"the quantizer '{name}' gives floating-point numbers, and training holds only "
                "sums of integers within an accumulator; plan bits, such as 4, for its layer."
            )


def cosine(optimizer: Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
    """Learning rates that fall to 0 along a cosine."""
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)


def finetune(
    model: nn.Module | QuantizeResult | FinetuneResult,
    loader: Iterable[Any],
    *,
    epochs: int = 10,
    learning_rate: float = 1e-3,
    scale_learning_rate: float | None = None,
    loss: Loss | None = None,
    validation: Validation | None = None,
    penalty: float = 0.0,
    optimizer: Callable[[list[dict[str, Any]]], Optimizer] = torch.optim.AdamW,
    scheduler: Callable[[Optimizer, int], Any] = cosine,
    exclude: tuple[str, ...] = (),
    state: str | Path | None = None,
    seed: int = 0,
    progress: bool = True,
    log: Log | None = None,
) -> FinetuneResult:
    """Fine-tunes a model; budgets are kept at every forward and proven at every epoch.

    Args:
        model: with accumulator-aware quantizers, from `apply_plan`; or a result of `quantize`,
            `quantize_blocks`, `load` or of this function, which says what to leave out. Not
            modified.
        loader: batches, iterated once per epoch: (input, ..., label) tuples, or, with a loss of
            your own, tensors or dictionaries of keyword arguments.
        epochs: how many.
        learning_rate: of biases and norms; weights and scales as in `parameter_groups`.
        scale_learning_rate: fraction by which scales may change per step, None for ten times
            learning_rate.
        loss: (output, batch) → scalar; None for cross-entropy with the labels.
        validation: batches, or model → score, higher is better. Batches are scored by accuracy, or
            with a loss of your own by its negative mean. The best epoch is returned, which may be
            number 0; without validation, the last one.
        penalty: weight of `accumulator_penalty`.
        optimizer: groups of parameters → optimizer.
        scheduler: (optimizer, steps in all) → scheduler, stepped after every step.
        exclude: names of layers and products that stay out of the certificate, `floats` of
            `quantize_blocks` for instance; those of a result need not be named again.
        state: folder for progress; a killed run continues from its last whole epoch to the same
            bits. The data must be the same, which is not checked.
        seed: of order, dropout and whatever else draws numbers; each epoch has its own.
        progress, log: as in `Run`; a log gets the numbers of every epoch.

    Raises:
        NotProven: the model does not keep its widths, before or during training.
        InvalidOption, EmptyCalibration, InvalidState, NonFiniteValues: one sentence each.
    """
    if type(epochs) is not int or epochs < 1:
        raise InvalidOption(f"finetune takes a whole number of epochs from 1, not {epochs!r}.")
    network, recipe, exclude = subject(model, exclude)
    settings = (epochs, learning_rate, scale_learning_rate, penalty, list(exclude), seed)
    trained = copied(network)
    judge = _judge(trained, loader, loss, validation, exclude, seed)
    saved_run = None if state is None else _opened(state, settings, trained, judge.plan)
    saved = None if saved_run is None else saved_run.load()
    if saved is not None:
        load_model_state(trained, saved["model"])  # before the optimizer sees the parameters
    stepper = optimizer(parameter_groups(trained.train(), learning_rate, scale_learning_rate))
    schedule = scheduler(stepper, epochs * length(loader))
    if saved is None:
        history, best = _beginning(judge, stepper, schedule, saved_run)
        log_numbers(log, "epoch", history[0], 0)
    else:
        history, best = _continued(saved, stepper, schedule)
    for epoch in range(len(history), epochs + 1):
        begun = time.perf_counter()
        with seeded(seed * 1_000_003 + epoch, (loader,)):
            means = _epoch(trained, loader, loss or label_loss, penalty, stepper, schedule,
                           f"epoch {epoch}/{epochs}", progress)  # fmt: skip
        judged = judge.score(), stepper, judge.prove()
        entry = _entry(epoch, *means, *judged, time.perf_counter() - begun)
        best = _better(entry, history, best, trained)
        history.append(entry)
        log_numbers(log, "epoch", entry, epoch)
        if saved_run is not None:
            saved_run.save(_progress(trained, history, best, stepper, schedule))
    load_model_state(trained, best)
    proof, number, plan = judge.prove(), best["epoch"], _with_bits(judge.plan, trained)
    return FinetuneResult(trained.eval(), history, proof, number, plan, recipe, exclude, judge.call)


def subject(
    model: nn.Module | QuantizeResult | FinetuneResult, exclude: tuple[str, ...]
) -> tuple[nn.Module, Recipe | None, tuple[str, ...]]:
    """The model itself, the recipe of a result, and all names that stay out of the verdict.

    Raises:
        InvalidOption: a floating-point format.
    """
    exclude = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    _check_integers(model if isinstance(model, nn.Module) else model.model)
    if isinstance(model, nn.Module):
        return model, None, exclude
    floats = model.floats if isinstance(model, BlocksResult) else ()
    names = tuple(dict.fromkeys((*exclude, *model.exclude, *floats)))
    return model.model, model.recipe, names


def _beginning(
    judge: _Judge, optimizer: Optimizer, schedule: Any, saved_run: SavedRun | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History and best state before training, which are seen to be written and read back."""
    model = judge.model
    history = [_entry(0, None, None, judge.score(), optimizer, judge.prove(), 0.0)]
    best = {"epoch": 0, **model_state(model)}
    load_model_state(model, best)
    if saved_run is not None:
        saved_run.save(_progress(model, history, best, optimizer, schedule))
        saved_run.check()
    return history, best


def _continued(
    saved: dict[str, Any], optimizer: Optimizer, schedule: Any
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """History and best state of a run that was killed, and its optimizer as it was."""
    optimizer.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["scheduler"])
    return saved["history"], saved["best"]


def _progress(
    model: nn.Module, history: list, best: dict, optimizer: Optimizer, schedule: Any
) -> dict[str, Any]:
    """All that a run needs to go on."""
    states = {"optimizer": optimizer.state_dict(), "scheduler": schedule.state_dict()}
    return {**states, "model": model_state(model), "history": history, "best": best}


def _opened(state: str | Path, settings: tuple, model: nn.Module, plan: Plan) -> SavedRun:
    """The folder of a run with these settings, which starts from this model."""
    fingerprint = Fingerprint({"finetune": settings, "plan": plan.to_json()})
    fingerprint.add(model)
    check_training(model, state)
    return SavedRun(state, fingerprint.hexdigest())


@dataclass(frozen=True)
class _Judge:
    """Proves and scores the model in training, between two epochs.

    Attributes:
        model: in training.
        plan: the widths that it has to keep.
        exclude: names that stay out of the certificate.
        call: arguments of one forward.
        loss, validation, seed: as `finetune` takes them.
    """

    model: nn.Module
    plan: Plan
    exclude: tuple[str, ...]
    call: tuple[tuple, dict[str, Any]]
    loss: Loss | None
    validation: Validation | None
    seed: int

    def prove(self) -> Certificate:
        return certified(self.model, self.plan, self.exclude, self.call).require()

    def score(self) -> float | None:
        """Higher is better; None without validation."""
        if self.validation is None:
            return None
        with seeded(self.seed, ()):
            if callable(self.validation):
                return float(self.validation(self.model))
            if self.loss:
                return -mean_loss(self.model, self.validation, self.loss)
            return accuracy(self.model, self.validation)


def _judge(
    trained: nn.Module,
    loader: Iterable[Any],
    loss: Loss | None,
    validation: Validation | None,
    exclude: tuple[str, ...],
    seed: int,
) -> _Judge:
    """A judge for the widths that the model has now, with the arguments of its first batch."""
    [call] = first_calls(trained, loader, seed, 1)
    modules = dict(trained.named_modules())
    plan = accumulator_plan(trained, tuple(name for name in exclude if name in modules))
    return _Judge(trained, plan, exclude, call, loss, validation, seed)


def first_calls(model: nn.Module, loader: Iterable[Any], seed: int, count: int) -> list[Batch]:
    """Arguments of the forwards on the first batches, at least one and at most so many."""
    with seeded(seed, (loader,)):
        batches = list(islice(on_device(model, loader), count))
    if not batches:
        raise EmptyCalibration("the training data has no batch; give at least one.")
    return [
        ((), batch)
        if isinstance(batch, dict)
        else ((batch[0] if isinstance(batch, tuple | list) else batch,), {})
        for batch in batches
    ]


def _better(
    entry: dict[str, Any], history: list[dict[str, Any]], best: dict[str, Any], trained: nn.Module
) -> dict[str, Any]:
    """The best epoch so far: this one, where nothing is scored or its score is the highest."""
    if entry["score"] is None or entry["score"] > max(
        (h["score"] for h in history), default=-math.inf
    ):
        return {"epoch": entry["epoch"], **model_state(trained)}
    return best


def _epoch(
    model: nn.Module,
    loader: Iterable[Any],
    loss: Loss,
    weight: float,
    optimizer: Optimizer,
    schedule: Any,
    title: str,
    progress: bool,
) -> tuple[float, float]:
    """One pass over the data; returns the means of loss and penalty."""
    model.train()
    losses, penalties = [], []
    bar = tqdm(on_device(model, loader), title, length(loader), disable=not progress, leave=False)
    for batch in bar:
        optimizer.zero_grad()
        value = loss(run(model, batch), batch)
        extra = accumulator_penalty(model) if weight else torch.zeros(())
        check_finite(value, title)
        (value + weight * extra.to(value)).backward()
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
        penalties.append(float(extra.detach()))
        bar.set_postfix(loss=f"{losses[-1]:.4g}")
    return sum(losses) / len(losses), sum(penalties) / len(penalties)


def check_finite(value: Tensor, title: str) -> None:
    """Raises NonFiniteValues for a loss with which training cannot go on."""
    if not bool(torch.isfinite(value)):
        raise NonFiniteValues(
            f"the loss became NaN or infinite in {title}; lower the learning rate, or look for bad "
            "values in the data."
        )


def length(loader: Any) -> int:
    """Batches per epoch; counted where the loader cannot tell."""
    return len(loader) if hasattr(loader, "__len__") else sum(1 for _ in loader)


def _entry(
    epoch: int,
    loss: float | None,
    penalty: float | None,
    score: float | None,
    optimizer: Optimizer,
    certificate: Certificate,
    seconds: float,
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "loss": loss,
        "penalty": penalty,
        "score": score,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "certified": certificate.ok,
        "accumulator_bits": max(entry.width or 0 for entry in certificate.judged),
        "seconds": seconds,
    }
