"""Saved runs, model states with Brevitas's counters, and borrowed generators."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Uint8ActPerTensorFloat
from torch import nn

from brevitas_axe.errors import InvalidState
from brevitas_axe.run.finetune.checkpoint import SavedRun, load_model_state, model_state, seeded


def test_the_last_save_comes_back(tmp_path: Path):
    saved = SavedRun(tmp_path / "new", "run")
    assert saved.load() is None
    for epoch in (1, 2):
        saved.save({"epoch": epoch, "weight": torch.full((3,), float(epoch))})
    content = SavedRun(tmp_path / "new", "run").load()
    assert content is not None
    assert content["epoch"] == 2
    assert torch.equal(content["weight"], torch.full((3,), 2.0))
    with pytest.raises(InvalidState, match="another model or setting"):
        SavedRun(tmp_path / "new", "another").load()


def activation() -> nn.Module:
    return nn.Sequential(qnn.QuantReLU(act_quant=Uint8ActPerTensorFloat))


def test_statistics_go_on_where_they_were():
    model = activation().train()
    torch.manual_seed(0)
    data = torch.rand(6, 8, 5)
    for x in data[:3]:
        model(x)
    copied = activation().train()
    load_model_state(copied, model_state(model))
    for x in data[3:]:
        assert torch.equal(model(x), copied(x))


def test_a_state_is_a_copy():
    model = nn.Linear(2, 2)
    state = model_state(model)
    expected = model.weight.detach().clone()
    model.weight.data.zero_()
    load_model_state(model, state)
    assert torch.equal(model.weight, expected)


def test_generators_are_seeded_and_given_back():
    class Loader:
        generator = torch.Generator().manual_seed(9)

    def drawn() -> tuple:
        numbers = torch.rand(2).tolist(), random.random(), float(np.random.rand())  # noqa: NPY002
        return *numbers, torch.rand(2, generator=Loader.generator).tolist()

    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    Loader.generator.manual_seed(9)
    expected = drawn()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    Loader.generator.manual_seed(9)
    with seeded(5, (Loader(),)):
        first = drawn()
    assert drawn() == expected != first
    with seeded(5, (Loader(),)):
        assert drawn() == first
