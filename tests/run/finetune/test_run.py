"""`finetune`: learns, proves, resumes to the same bits."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from brevitas.quant import Int8WeightPerChannelFloat
from torch.utils.data import DataLoader, TensorDataset

from brevitas_axe.errors import EmptyCalibration, InvalidOption, InvalidState, NonFiniteValues
from brevitas_axe.run.finetune import accuracy, ep_init, finetune
from tests.run.finetune.nets import WIDTH, all_integers, batches, conv_net, same


def loader(generator: torch.Generator | None = None) -> DataLoader:
    x, y = (torch.cat(part) for part in zip(*batches("conv", 6), strict=True))
    return DataLoader(TensorDataset(x, y), 16, shuffle=True, generator=generator)


def run(model=None, data=None, **more):
    settings = {"epochs": 3, "learning_rate": 5e-3, "progress": False, **more}
    return finetune(conv_net() if model is None else model, data or loader(), **settings)


def test_it_learns_keeps_the_best_and_proves_every_epoch():
    held_out = batches("conv", 2, seed=7)
    model = ep_init(conv_net(), (held_out[0][0],))
    before = all_integers(model)
    result = run(model, epochs=5, learning_rate=2e-2, validation=held_out, penalty=1e-3)
    assert same(before, all_integers(model))
    assert [entry["epoch"] for entry in result.history] == list(range(6))
    assert all(entry["certified"] for entry in result.history)
    assert all(entry["accumulator_bits"] <= WIDTH for entry in result.history)
    scores = [entry["score"] for entry in result.history]
    assert scores[result.best_epoch] == max(scores) > 0.8
    assert accuracy(result.model, held_out) == pytest.approx(max(scores))
    assert result.certificate.ok
    assert not result.model.training
    assert result.history[-1]["loss"] < result.history[1]["loss"]
    assert result.history[1]["penalty"] > 0


def test_validation_may_be_a_function_and_the_start_may_win():
    scores = iter([5.0, 1.0, 2.0, 3.0])
    model = conv_net()
    result = run(model, validation=lambda _: next(scores))
    assert result.best_epoch == 0
    assert same(all_integers(result.model), all_integers(model))


def test_a_loss_of_ones_own_scores_by_itself():
    data = batches("conv", 2)
    result = run(data=data, epochs=1, loss=lambda out, b: out.square().mean(), validation=data)
    assert result.history[-1]["score"] < 0


class Killed(Exception):
    """Stands in for the end of the process."""


class Dying:
    """A loader that is killed in the middle of an epoch."""

    def __init__(self, inner: DataLoader, after: int) -> None:
        self.inner, self.after = inner, after

    def __getattr__(self, name: str):
        return getattr(self.inner, name)  # its generators above all

    def __len__(self) -> int:
        return len(self.inner)

    def __iter__(self):
        for batch in self.inner:
            self.after -= 1
            if self.after == 0:
                raise Killed
            yield batch


@pytest.mark.parametrize("own_generator", [False, True])
def test_a_killed_run_continues_to_the_same_bits(tmp_path: Path, own_generator):
    def fresh() -> DataLoader:
        return loader(generator=torch.Generator() if own_generator else None)

    def noisy(output, batch):
        # Draws from every generator that an augmentation may use.
        factor = 1 + 0.1 * (torch.rand(()) + random.random() + float(np.random.rand()))  # noqa: NPY002
        return factor * torch.nn.functional.cross_entropy(output, batch[1])

    options = {"loss": noisy, "validation": batches("conv", 1), "penalty": 1e-3}
    whole = run(data=fresh(), **options)
    with pytest.raises(Killed):
        run(data=Dying(fresh(), 12), state=tmp_path, **options)
    torch.rand(7), random.random()  # another process starts elsewhere
    resumed = run(data=fresh(), state=tmp_path, **options)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    for one, other in zip(whole.history, resumed.history, strict=True):
        assert {**one, "seconds": 0} == {**other, "seconds": 0}
    again = run(data=fresh(), state=tmp_path, **options)  # nothing left to do
    assert again.history == resumed.history


def test_the_seed_decides_and_the_callers_generators_are_left_alone():
    model = conv_net()
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    one = run(model, epochs=1, seed=1).model.state_dict()
    assert torch.equal(torch.rand(3), expected)
    two, three = (run(model, epochs=1, seed=seed).model.state_dict() for seed in (1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], three[key]) for key in one)


def test_states_of_other_runs_and_broken_ones_are_refused(tmp_path: Path):
    run(epochs=1, state=tmp_path)
    with pytest.raises(InvalidState, match="another model or setting"):
        run(epochs=2, state=tmp_path)
    path = tmp_path / "training.saved"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidState, match="corrupted"):
        run(epochs=1, state=tmp_path)
    with pytest.raises(InvalidState, match="is a file"):
        run(epochs=1, state=path)


def test_bad_input_gets_one_sentence():
    with pytest.raises(InvalidOption, match="epochs"):
        run(epochs=0)
    with pytest.raises(EmptyCalibration, match="no batch"):
        run(data=iter(()))
    with pytest.raises(InvalidOption, match="no labels"):
        run(data=[batches("conv", 1)[0][0]])
    x, y = batches("conv", 1)[0]
    with pytest.raises(NonFiniteValues, match="epoch 1/3"):
        run(data=[(x, y)], loss=lambda out, b: out.sum() * float("nan"))


def test_a_model_without_widths_is_measured_only():
    result = run(conv_net(Int8WeightPerChannelFloat), epochs=1)
    assert result.certificate.ok
    assert result.history[-1]["accumulator_bits"] > WIDTH
