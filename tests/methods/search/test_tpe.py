from __future__ import annotations

import logging

import optuna
import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import Space
from brevitas_axe.methods.search.random import random
from brevitas_axe.methods.search.tpe import tpe
from brevitas_axe.registry import method

SPACE = Space({f"layer{i}": tuple(range(6)) for i in range(6)})


def objective(configuration) -> float:
    return -float(sum((value - 3) ** 2 for value in configuration.values()))


def test_it_learns_from_results() -> None:
    """46,656 configurations, 60 questions: far nearer to the optimum than chance, every seed."""
    ours = [objective(tpe(SPACE, objective, 60, seed=seed)) for seed in range(4)]
    chance = [objective(random(SPACE, objective, 60, seed=seed)) for seed in range(4)]
    assert sum(ours) > 0.7 * sum(chance)


def test_earlier_results_count_as_learned() -> None:
    before = [(SPACE.at(SPACE.numbered(n)), 0.0) for n in range(0, SPACE.size, 777)]
    before = [(configuration, objective(configuration)) for configuration, _ in before]
    cold = [objective(tpe(SPACE, objective, 15, seed=seed)) for seed in range(4)]
    warm = [objective(tpe(SPACE, objective, 15, before=before, seed=seed)) for seed in range(4)]
    assert sum(warm) > sum(cold)


def test_optuna_is_silent_and_keeps_its_own_verbosity(caplog) -> None:
    optuna.logging.enable_propagation()
    try:
        verbosity = optuna.logging.get_verbosity()
        with caplog.at_level(logging.INFO):
            tpe(SPACE, objective, 3)
        assert not caplog.records
        assert optuna.logging.get_verbosity() == verbosity
    finally:
        optuna.logging.disable_propagation()


def test_options() -> None:
    assert method("search", "tpe:startup=3").startup == 3
    with pytest.raises(InvalidOption, match="startup"):
        method("search", "tpe:startup=-1")
