"""A convolutional net that went through `prepare` and `quantize` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from brevitas_axe.cli import main

USER_FILE = """
import torch
from tests.walk import nets

NET = nets.cnn

def build():
    return nets.seeded(NET)

def images():
    return [nets.data(NET)]

def size(model):
    return float(model(nets.data(NET)).abs().mean())

def likeness(model):
    x = nets.data(NET)
    return 1 - float((model(x) - nets.seeded(NET)(x)).abs().mean())

def word(model):
    return "good"

def labelled():
    return [(nets.data(NET), nets.labels(NET))]

def stops():
    raise SystemExit(1)

def one():
    return nets.data(NET)

def divides(model):
    return 1 / 0

class Fails(torch.nn.Module):
    calls = 0

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(192, 3)

    def forward(self, x):
        Fails.calls += 1
        if Fails.calls > 2:
            raise RuntimeError("no luck")
        return self.head(x.flatten(1))

def identity():
    return torch.nn.Identity()

def failing():
    return Fails()
"""
DATA = ("--calibration", "user.py:images")


@pytest.fixture(scope="session")
def solved_place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with user.py, prepared (by `prepare`) and solved (by `quantize`, 12 bits)."""
    place = tmp_path_factory.mktemp("place")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (place / "user.py").write_text(USER_FILE)
        assert main(["prepare", "user.py:build", *DATA]) == 0
        more = ["--accumulator-bits", "12", "--quality", "fast", "--output", "solved"]
        assert main(["quantize", "prepared", *DATA, *more, "--target", "finn"]) == 0
    return place


@pytest.fixture
def at(solved_place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, as current folder; nothing in it is to be changed."""
    monkeypatch.chdir(solved_place)
    return solved_place
