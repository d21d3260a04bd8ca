"""What every registered scorer promises, on a small net with a residual sum."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch

from brevitas_axe.errors import InvalidState
from brevitas_axe.methods.sensitivity import GroupingScorer, Scorer, make_choices, score
from brevitas_axe.methods.sensitivity.tdmpq import Tdmpq
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.registry import methods
from tests.model.test_prepare import Residual, X

SCORERS: dict[str, Scorer] = {
    **methods("sensitivity"),
    "tdmpq, first order": Tdmpq(first_order=True),
}
BATCHES = [X, X.flip(0), X.roll(1, 0)]
every = pytest.mark.parametrize("name", SCORERS)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return to_brevitas(Residual().eval(), as_batches(BATCHES))


@pytest.fixture(scope="module")
def choices(model):
    return make_choices(model, (X[:1],), weight=(2, 6), input=(3, 6), accumulator=(12, None))


def test_all_are_there() -> None:
    wanted = {"augmented", "cmpq", "decoupled", "hutchinson", "importance", "local", "lrp"}
    assert wanted | {"measured", "pmpq", "tdmpq"} <= set(SCORERS)


@every
def test_the_model_is_left_bit_identical(name, model, choices) -> None:
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
    with torch.no_grad():
        before = model(X)
    first = score(model, BATCHES, choices, SCORERS[name])
    with torch.no_grad():
        assert torch.equal(model(X), before)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()] == hooks
    assert all(parameter.grad is None for parameter in model.parameters())
    for layer, options in choices.layers.items():
        assert first.harm[layer].shape == (len(options),)
        assert np.isfinite(first.harm[layer]).all()
    # Groups that are told beforehand are those of the scores.
    found = SCORERS[name]
    groups = found.groups(choices.layers) if isinstance(found, GroupingScorer) else {}
    assert first.parts == groups


@every
def test_scores_come_back_from_the_disk(name, model, choices, tmp_path) -> None:
    first = score(model, BATCHES, choices, SCORERS[name], state=tmp_path)
    (path,) = tmp_path.iterdir()
    kept = path.read_bytes()

    def again() -> bool:
        """Whether a copy of the model has the first scores, with this file in the cache."""
        copied = copy.deepcopy(model)
        scores = score(copied, BATCHES, choices, SCORERS[name], state=tmp_path, workers=2)
        return all(np.array_equal(first.harm[n], scores.harm[n]) for n in choices.layers)

    assert again()
    assert path.read_bytes() == kept
    # A run killed half way.
    lines = kept.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    assert again()
    assert sorted(path.read_bytes().splitlines(keepends=True)) == sorted(lines)
    # Other numbers under the old checksums are not believed: all of it is computed again.
    path.write_bytes(b"".join(map(falsified, lines)))
    with pytest.raises(InvalidState, match="checksum"):
        again()


def falsified(line: bytes) -> bytes:
    """A line of the cache with other numbers."""
    key, value, checksum = json.loads(line)
    several = isinstance(value, list)
    wrong = [(n + 2) * x + 1 for n, x in enumerate(value if several else [value])]
    return json.dumps([key, wrong if several else wrong[0], checksum]).encode() + b"\n"


@every
def test_facts_are_of_the_catalogue(name) -> None:
    facts = SCORERS[name].facts
    assert facts.kind in {"MPW", "MPW+UPA", "MPW+MPA", "KV"}
    assert facts.export in {"finn", "qonnx", "none"}
    assert facts.source
