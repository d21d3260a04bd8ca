"""Logs of a run: what is logged, what TensorBoard and MLflow get, and that neither is needed."""

from __future__ import annotations

import math
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.recipe import Run
from brevitas_axe.run.allocate import sensitivity
from brevitas_axe.run.finetune import finetune
from brevitas_axe.run.logs import log_numbers, opened
from brevitas_axe.run.quantize import quantize

X = torch.rand(32, 6, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


class Logged(list):
    """A log that remembers."""

    def __call__(self, name: str, value: float, step: int) -> None:
        self.append((name, value, step))

    def steps(self, name: str) -> list[int]:
        return [step for each, _, step in self if each == name]


def test_numbers_alone_are_logged() -> None:
    log = Logged()
    entry = {"name": "0", "error": 0.5, "ok": True, "none": None, "nan": math.nan, "rows": 3}
    log_numbers(log, "layer", entry, 7)
    assert log == [("layer/error", 0.5, 7), ("layer/rows", 3, 7)]
    log_numbers(None, "layer", entry, 7)


def test_a_solve_and_a_training_log_each_layer_and_each_epoch() -> None:
    log = Logged()
    run = Run(progress=False, log=log)
    solve = {"accumulator_bit_width": 12, "quality": "fast", "run": run}
    result = quantize(net(), [X], **solve)
    errors = [value for name, value, _ in log if name == "layer/error"]
    assert errors == [entry["error"] for entry in result.layers]
    assert log.steps("layer/error") == [*range(len(errors))]
    batches = [(X, X[:, :3].argmax(1))]
    trained = finetune(result, batches, epochs=1, validation=batches, progress=False, log=log)
    assert log.steps("epoch/score") == [0, 1]
    assert ("epoch/loss", trained.history[1]["loss"], 1) in log


def test_scores_log_the_harm_of_every_choice() -> None:
    log, widths = Logged(), {"weight": (3, 4), "input": (4,)}
    run = Run(progress=False, log=log)
    scores = sensitivity(net(), [X], widths, run=run)
    for layer, harms in scores.harm.items():
        assert [v for name, v, _ in log if name == f"harm/{layer}"] == harms.tolist()


def test_tensorboard_gets_scalars_in_a_folder(monkeypatch) -> None:
    told = Logged()

    class SummaryWriter:
        def __init__(self, folder: str, **_: object) -> None:
            told("opened " + folder, 0, 0)

        def __enter__(self) -> SummaryWriter:
            return self

        def __exit__(self, *_: object) -> None:
            told("closed", 0, 0)

        add_scalar = staticmethod(told)

    fake = SimpleNamespace(SummaryWriter=SummaryWriter)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    with opened("tensorboard:runs:1") as log:
        assert not told  # a command that is refused leaves no folder behind
        log_numbers(log, "layer", {"error": 0.5}, 0)
        log_numbers(log, "layer", {"error": 0.25}, 1)
    names = [name for name, _, _ in told]
    assert names == ["opened runs:1", "layer/error", "layer/error", "closed"]
    with pytest.raises(InvalidOption, match="is a file; a log of TensorBoard takes a folder"):
        opened(f"tensorboard:{__file__}").__enter__()


def test_mlflow_gets_metrics_under_names_that_it_takes(monkeypatch) -> None:
    told: list = []

    class started:
        def __enter__(self) -> None:
            told.append("started")

        def __exit__(self, *_: object) -> None:
            told.append("ended")

    fake = SimpleNamespace(
        set_experiment=lambda name: told.append(name) if name == "mine" else 1 / 0,
        start_run=started,
        log_metric=lambda name, value, step: told.append((name, value, step)),
    )
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    with opened("mlflow:mine") as log:
        log_numbers(log, "harm", {"0.conv+1": 0.5}, 2)
    with pytest.raises(InvalidOption, match="mlflow cannot open 'other': division by zero"):
        opened("mlflow:other").__enter__()
    assert told == ["mine", "started", ("harm/0.conv_1", 0.5, 2), "ended"]


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("runs", "tensorboard:FOLDER or mlflow:EXPERIMENT, not 'runs'"),
        ("tensorboard:", "not 'tensorboard:'"),
        ("wandb:mine", "not 'wandb:mine'"),
        ("mlflow:mine", "package mlflow is not installed"),
        ("tensorboard:runs", "package tensorboard is not installed"),
    ],
)
def test_what_cannot_be_opened_is_refused_in_one_sentence(spec, says, monkeypatch) -> None:
    for package in ("mlflow", "tensorboard", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InvalidOption, match=says):
        opened(spec)


def test_without_a_log_there_is_none() -> None:
    with opened(None) as log:
        assert log is None
