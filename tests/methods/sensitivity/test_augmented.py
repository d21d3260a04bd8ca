"""Pairs of the augmented scorer, computed by hand on linear layers."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant import Int8ActPerTensorFloat
from torch import nn

from brevitas_axe.methods.sensitivity import augmented as augmented_module
from brevitas_axe.methods.sensitivity import make_case, make_choices, score
from brevitas_axe.methods.sensitivity.augmented import Augmented
from brevitas_axe.methods.sensitivity.budgeted import moments, part
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.prepare import as_batches, calibrate

X = torch.rand(64, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> nn.Sequential:
    """Three linear layers and nothing between them."""
    torch.manual_seed(0)
    sizes = ((8, 6), (6, 6), (6, 4))
    net = nn.Sequential(
        *(qnn.QuantLinear(*size, bias=False, input_quant=Int8ActPerTensorFloat) for size in sizes)
    ).eval()
    calibrate(net, as_batches([X]))
    return net


def test_pairs_are_what_two_layers_lose_together(model) -> None:
    choices = make_choices(model, (X[:1],), weight=(2, 4), input=(3,), accumulator=(9, None))
    scores = score(model, [X], choices, Augmented(strength=2.0), metric="mse")
    case = make_case(model, [X], choices, "mse")
    worst = {name: int(scores.harm[name].argmax()) for name in case.names}
    (known,) = moments(case, case.names)
    parts = {n: part(case, n, choices.layers[n][worst[n]], known[n]) for n in case.names}

    def loss(*quantized: str) -> float:
        """The metric of a product of matrices, some of them and their inputs quantized."""
        x, real = X, X
        for name in case.names:
            layer: Layer = model.get_submodule(name)
            weight = layer.weight.detach()
            real = real @ weight.T
            if name in quantized:
                own = parts[name]
                assert own.grid is not None
                assert own.weight is not None
                x, weight = own.grid(x), own.weight
            x = x @ weight.T
        return float((x - real).square().sum() / real.square().sum())

    assert set(scores.pairs) == set(combinations(case.names, 2))
    for (first, second), found in scores.pairs.items():
        together = loss(first, second) - loss(first) - loss(second) + loss()
        reach = [np.sqrt(scores.harm[n] / scores.harm[n].max()) for n in (first, second)]
        assert found == pytest.approx(2.0 * together * np.outer(*reach), rel=1e-3, abs=1e-7)
        assert found[worst[first], worst[second]] == pytest.approx(2.0 * together, rel=1e-3)
        assert abs(together) > 1e-4


def test_an_accumulator_changes_the_pairs_in_one_cache(model, tmp_path) -> None:
    def pairs(bits: int, cache=None) -> list[np.ndarray]:
        choices = make_choices(model, (X[:1],), weight=(4,), input=(3,), accumulator=(bits,))
        return list(score(model, [X], choices, "augmented", state=cache).pairs.values())

    wide, narrow = pairs(14, tmp_path), pairs(7, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert all(map(np.array_equal, narrow, pairs(7)))
    assert not np.allclose(narrow, wide)


def test_known_losses_are_not_solved_for_again(model, tmp_path, monkeypatch) -> None:
    choices = make_choices(model, (X[:1],), weight=(2, 4))
    whole = score(model, [X], choices, "augmented", state=tmp_path)
    (path,) = tmp_path.iterdir()
    lines = path.read_bytes().splitlines(keepends=True)
    solved: list[str] = []

    def noted(case, name, choice, known):
        solved.append(name)
        return part(case, name, choice, known)

    monkeypatch.setattr(augmented_module, "part", noted)
    for last, names in ((len(lines), []), (len(lines) - 1, ["1", "2"])):
        path.write_bytes(b"".join(lines[:last]))
        again = score(model, [X], choices, "augmented", state=tmp_path)
        assert solved == names
        assert all(np.array_equal(again.pairs[pair], d) for pair, d in whole.pairs.items())
