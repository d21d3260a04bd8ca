"""Quantune: trees learn from what was measured, on this model and on others."""

from __future__ import annotations

import sys

import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import Record, Space
from brevitas_axe.methods.search.random import random
from brevitas_axe.methods.search.surrogate import Surrogate, surrogate

pytest.importorskip("xgboost", reason="pip install 'brevitas_axe[tune]'")

DECISIONS = {
    "profile": (1, 1000, 10000),
    "scheme": ("asymmetric", "symmetric", "unsigned", "power"),
    "clipping": ("max", "kl"),
    "granularity": ("tensor", "channel"),
}
SPACE = Space(DECISIONS)


def accuracy(configuration, depthwise: float = 0.0) -> float:
    """Per cent; what is best depends on how many layers are depthwise, as in the paper."""
    lost = {"asymmetric": 0, "symmetric": 1, "unsigned": 2, "power": 6}
    value = 70.0 - lost[configuration["scheme"]]
    value -= 0 if configuration["granularity"] == "channel" else 2 + 3 * depthwise
    better = "kl" if depthwise > 4 else "max"
    return value - (0 if configuration["clipping"] == better else 5)


def everything() -> list[dict]:
    return [SPACE.at(SPACE.numbered(n)) for n in range(SPACE.size)]


def trials(searcher, space: Space, depthwise: float, seed: int) -> int:
    """Questions until a best configuration is among them."""
    best = max(accuracy(c, depthwise) for c in everything())
    asked: list[float] = []
    searcher(space, lambda c: asked.append(accuracy(c, depthwise)) or asked[-1], 48, seed=seed)
    return 1 + asked.index(best)


def others(*depthwise: float) -> list[Record]:
    return [Record({"dwc": d}, c, accuracy(c, d)) for d in depthwise for c in everything()]


def test_warm_is_faster_than_cold_and_cold_than_chance() -> None:
    cold = Space(DECISIONS, {"dwc": 9.0})
    warm = Space(DECISIONS, {"dwc": 9.0}, others(0.0, 8.0, 10.0))
    counts = {
        name: sum(trials(searcher, space, 9.0, seed) for seed in range(5))
        for name, searcher, space in (
            ("warm", Surrogate(rounds=40), warm),
            ("cold", Surrogate(rounds=40), cold),
            ("random", random, cold),
        )
    }
    assert counts["warm"] <= 5 * 2
    assert counts["warm"] < counts["cold"] < counts["random"]


def test_features_tell_which_models_are_similar() -> None:
    """Of two models that disagree about clipping, the one with similar features is followed."""
    for mine, wanted in ((0.0, "max"), (9.0, "kl")):
        space = Space(DECISIONS, {"dwc": mine}, others(0.0, 9.0))
        asked: list[dict] = []
        surrogate(space, lambda c, a=asked: a.append(c) or 0.0, 1)
        assert asked[0]["clipping"] == wanted
        assert accuracy(asked[0], mine) == max(accuracy(c, mine) for c in everything())


def test_values_that_are_not_offered_and_missing_features_are_no_error() -> None:
    strange = [
        Record({}, {"scheme": "ternary"}, 3.0),
        Record({"more": 1.0}, {"solver": "x", "clipping": "kl"}, float("nan")),
        Record({"more": 2.0}, {}, float("-inf")),
    ]
    space = Space(DECISIONS, {"dwc": 1.0}, strange)
    found = surrogate(space, accuracy, 3)
    assert SPACE.positions(found)


def test_the_scale_of_the_objective_does_not_matter() -> None:
    """As a share, as per cent and as a negative loss, the same questions are asked."""
    orders = []
    for scale, shift in ((1.0, 0.0), (0.01, 0.0), (1000.0, -1e5)):
        asked: list[dict] = []

        def objective(c, asked=asked, scale=scale, shift=shift) -> float:
            asked.append(dict(c))
            return scale * accuracy(c) + shift

        surrogate(SPACE, objective, 12, seed=1)
        orders.append(asked)
    assert orders[0] == orders[1] == orders[2]


def test_in_a_large_space_neighbours_of_the_best_are_candidates() -> None:
    space = Space({f"layer{i}": tuple(range(8)) for i in range(8)})

    def objective(configuration) -> float:
        return -float(sum((value - 3) ** 2 for value in configuration.values()))

    searcher = Surrogate(candidates=64, rounds=40)
    ours = [objective(searcher(space, objective, 60, seed=seed)) for seed in range(3)]
    chance = [objective(random(space, objective, 60, seed=seed)) for seed in range(3)]
    assert sum(ours) > 0.7 * sum(chance)


def test_without_xgboost_one_sentence_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(InvalidOption, match=r"needs xgboost: pip install 'brevitas_axe\[tune\]'"):
        surrogate(SPACE, accuracy, 3)


@pytest.mark.parametrize("options", [{"rounds": 0}, {"rate": 2.0}, {"gamma": -1.0}], ids=str)
def test_bad_options_are_refused(options) -> None:
    with pytest.raises(InvalidOption, match=next(iter(options))):
        Surrogate(**options)
