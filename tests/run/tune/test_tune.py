"""Tuning: plain widths first, never worse than them, and every trial made once."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from brevitas_axe.errors import InvalidOption, InvalidState, UnsupportedLayer
from brevitas_axe.methods.search.random import Random
from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.model.prepare import as_batches, to_brevitas
from brevitas_axe.recipe import Recipe, Run
from brevitas_axe.run import widths
from brevitas_axe.run.finetune import FinetuneResult
from brevitas_axe.run.quantize import quantize
from brevitas_axe.run.result import BlocksResult
from brevitas_axe.run.tune import TuneResult, Tuning, tune
from brevitas_axe.run.tune.goal import Goal, Trial
from tests.run.tiny import VOCABULARY, batches, tiny

X = torch.rand(48, 12, generator=torch.Generator().manual_seed(1))
SEEN_BY_NONE = torch.rand(64, 12, generator=torch.Generator().manual_seed(2))
BATCHES = list(X.split(24))
AUTO = Recipe(widths="auto", budget={"bops": 1e9})
# Quick, and with a choice.
DECISIONS = {
    "widths": ("default", "best"),
    "solver": ("gptq", "gpfq", "qronos"),
    "quality": ("fast",),
    "ranges": ("max", "mse"),
    "transforms": ("none",),
    "calibration": (1.0, 0.5),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)
    return nn.Sequential(*layers).eval()


class Closeness:
    """One minus the relative error of the outputs; counts its calls.

    Args:
        interrupted: number of the call at which the user interrupts; 0 for never.
    """

    def __init__(self, interrupted: int = 0) -> None:
        self.calls, self._interrupted = 0, interrupted

    def __call__(self, model: nn.Module) -> float:
        self.calls += 1
        if self.calls == self._interrupted:
            raise KeyboardInterrupt
        wanted = net()(SEEN_BY_NONE)
        return 1 - float((model(SEEN_BY_NONE) - wanted).norm() / wanted.norm())


def run(validate=None, state=None, trials=6, **options):
    more = options.pop("tuning", {})
    tuning = Tuning(minutes=None, trials=trials, **{"decisions": DECISIONS, **more})
    return tune(
        net(), BATCHES, validate=validate or Closeness(), tuning=tuning,
        run=Run(state=state, progress=False), **options,
    )  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _few_widths():
    """Automatic widths that try two plans, so that each is found in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widths, "WEIGHT_BITS", (2, 3, 4))
        patch.setattr(widths, "INPUT_BITS", (4,))
        patch.setattr(widths, "_UNIFORM", 1)
        patch.setattr(widths, "_SEARCHED", "ilp")
        yield


@pytest.fixture(scope="module")
def nine(tmp_path_factory: pytest.TempPathFactory):
    """Six trials under nine bits, and the folder of their state."""
    state = tmp_path_factory.mktemp("nine")
    return run(accumulator_bit_width=9, state=state), state


def integers(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: integer_weight(name, layer)[0] for name, layer in find_layers(model).items()}


def test_doing_nothing_is_measured_first_and_never_better(nine) -> None:
    found, _ = nine
    plain = quantize(
        net(), BATCHES, accumulator_bit_width=9, solver="gptq", quality="fast", ranges="max",
        progress=False,
    )  # fmt: skip
    with torch.no_grad():
        assert found.trials[0].value == pytest.approx(Closeness()(plain.model))
        assert found.best.value == pytest.approx(Closeness()(found.model))
    assert found.plain == found.trials[0]
    assert found.best.value == max(trial.value for trial in found.trials)
    assert found.best.value > found.plain.value
    assert found.met
    assert found.certificate.ok
    assert len(found.trials) == 6
    assert found.unquantized == pytest.approx(1.0)
    assert "TuneResult of 6 trials" in repr(found)


def test_plan_and_recipe_of_the_result_give_its_integers(nine) -> None:
    found, _ = nine
    share = found.best.configuration["calibration"]
    data = [batch[: math.ceil(share * len(batch))] for batch in BATCHES]
    again = quantize(net(), data, found.plan, found.result.recipe, progress=False)
    mine = integers(again.model)
    assert all(torch.equal(q, mine[name]) for name, q in integers(found.model).items())


def test_what_was_measured_is_not_measured_again(nine) -> None:
    found, state = nine
    judge = Closeness()
    again = run(judge, state, accumulator_bit_width=9)
    assert judge.calls == 0
    assert (again.trials, again.best, again.plain) == (found.trials, found.best, found.plain)
    mine = integers(again.model)
    assert all(torch.equal(q, mine[name]) for name, q in integers(found.model).items())


def test_more_trials_go_on_where_the_others_ended(nine, tmp_path) -> None:
    found, _ = nine
    fewer = run(state=tmp_path, trials=3, accumulator_bit_width=9)
    judge = Closeness()
    more = run(judge, tmp_path, trials=5, accumulator_bit_width=9)
    assert judge.calls == 2
    assert more.trials[:3] == fewer.trials
    assert [t.configuration for t in fewer.trials] == [t.configuration for t in found.trials[:3]]


def test_a_killed_run_goes_on_with_the_same_questions(nine, tmp_path) -> None:
    found, _ = nine
    # While the float model is judged, then a plan, then a trial.
    for calls in (1, 3, 3):
        with pytest.raises(KeyboardInterrupt):
            run(Closeness(interrupted=calls), tmp_path, accumulator_bit_width=9)
    again = run(Closeness(), tmp_path, accumulator_bit_width=9)
    assert [t.configuration for t in again.trials] == [t.configuration for t in found.trials]
    assert [t.value for t in again.trials] == [t.value for t in found.trials]
    assert again.best.configuration == found.best.configuration


def test_a_broken_journal_is_named(tmp_path) -> None:
    only = {**DECISIONS, "widths": ("default",)}
    run(state=tmp_path, trials=2, accumulator_bit_width=9, tuning={"decisions": only})
    [path] = tmp_path.glob("tune-*/trials.jsonl")
    text = path.read_text()
    path.write_text(text[:-20])  # killed while it wrote
    judge = Closeness()
    run(judge, tmp_path, 2, accumulator_bit_width=9, tuning={"decisions": only})
    assert judge.calls == 1
    path.write_text(text.replace('"refused": null', '"refused": "no"', 1))
    with pytest.raises(InvalidState, match="has another checksum"):
        run(state=tmp_path, trials=2, accumulator_bit_width=9, tuning={"decisions": only})
    with pytest.raises(InvalidState, match="is a file"):
        run(state=path, trials=2, accumulator_bit_width=9)


def test_a_budget_is_kept_and_plain_widths_may_be_above_it() -> None:
    found = run(budget={"bops": "60%"}, trials=3)
    assert not found.plain.fits
    assert found.best.fits
    assert found.best.configuration["widths"] == "best"
    four = quantize(
        net(), BATCHES, weight_bit_width=4, input_bit_width=4, accumulator_bit_width=None,
        quality="fast", progress=False,
    )  # fmt: skip
    weights = {n: q.numel() for n, q in integers(four.model).items()}
    assert 0 < found.best.costs["bops"] <= 0.6 * 16 * sum(weights.values())
    with pytest.raises(InvalidOption, match="the least possible"):
        run(budget={"bops": 1})


def test_an_allowed_drop_asks_for_the_cheapest_model() -> None:
    decisions = {**DECISIONS, "share": ("100%", "50%"), "accumulator_bit_width": (16, 12)}
    found = run(max_drop="40%", trials=6, tuning={"decisions": decisions, "cost": "bops"})
    within = [t for t in found.trials if t.value >= 0.6]
    assert found.met
    assert found.best.costs["bops"] == min(t.costs["bops"] for t in within)
    assert found.best.costs["bops"] < found.plain.costs["bops"]
    nearest = run(max_drop=0, trials=2, tuning={"decisions": decisions, "cost": "bops"})
    assert not nearest.met
    assert nearest.best.value == max(t.value for t in nearest.trials)


def test_widths_that_are_too_wide_for_the_accumulator_are_a_refused_trial() -> None:
    found = run(accumulator_bit_width=7, trials=2)
    assert "cannot store one input" in str(found.plain.refused)
    assert math.isnan(found.plain.value)
    assert found.best.configuration["widths"] == "best"
    assert found.certificate.ok


def test_training_is_kept_where_it_is_better_and_counts_as_a_trial(tmp_path) -> None:
    labels = net()(SEEN_BY_NONE).argmax(-1).detach()
    training = [(SEEN_BY_NONE, labels)]
    tuning = {"epochs": 2, "decisions": {**DECISIONS, "widths": ("default",)}}
    given = {"accumulator_bit_width": 9, "training": training, "tuning": tuning, "trials": 2}

    def confidence(model: nn.Module) -> float:
        return -float(nn.functional.cross_entropy(model(SEEN_BY_NONE), labels))

    found = run(confidence, tmp_path, **given)
    assert [trial.trained for trial in found.trials] == [0, 0, 2]
    assert isinstance(found.result, FinetuneResult)
    assert found.best.value > max(trial.value for trial in found.trials[:2])
    assert found.certificate.ok
    again = run(lambda model: pytest.fail("it was judged"), tmp_path, **given)
    assert again.best == found.best
    worse = run(lambda model: 1.0, **given)  # no epoch is better
    assert not worse.best.trained


def test_the_time_ends_the_search_after_plain_widths() -> None:
    tuning = Tuning(minutes=1e-6, decisions=DECISIONS)
    found = tune(
        net(), BATCHES, validate=Closeness(), accumulator_bit_width=9, tuning=tuning,
        run=Run(progress=False),
    )  # fmt: skip
    assert [t.configuration["widths"] for t in found.trials] == ["default"]
    assert found.best == found.plain


def test_nothing_is_better_where_nothing_differs() -> None:
    ranks = {**DECISIONS, "widths": ("default", "best", "third")}
    found = run(lambda model: 0.5, trials=3, accumulator_bit_width=9, tuning={"decisions": ranks})
    assert found.best == found.plain
    assert "none is third" in str(found.trials[2].refused)


def test_the_model_is_left_as_it_is() -> None:
    model = net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tuning = Tuning(trials=1, decisions=DECISIONS)
    tune(model, BATCHES, validate=Closeness(), accumulator_bit_width=9, tuning=tuning,
         run=Run(progress=False))  # fmt: skip
    assert model.training
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_a_model_with_quantizers_of_its_own_is_tuned_without_transforms() -> None:
    own = to_brevitas(net(), as_batches(BATCHES), progress=False)
    tuning = Tuning(trials=2, minutes=None, decisions={"quality": ("fast",)})
    found = tune(own, BATCHES, validate=Closeness(), accumulator_bit_width=12, tuning=tuning,
                 run=Run(progress=False))  # fmt: skip
    assert all("transforms" not in trial.configuration for trial in found.trials)
    assert not any(trial.refused for trial in found.trials)


@pytest.mark.slow
def test_a_stack_of_blocks_is_tuned_too(tmp_path) -> None:
    text = torch.randint(0, VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(3))
    model = tiny("llama").eval()
    with torch.no_grad():
        wanted = model(text).logits
    tuning = Tuning(
        trials=3,
        minutes=None,
        decisions={**DECISIONS, "transforms": ("none", "smooth"), "widths": ("default",)},
    )

    def nearness(found: nn.Module) -> float:
        return -float((found(text).logits - wanted).norm() / wanted.norm())

    def tuned() -> TuneResult:
        return tune(
            model, batches("llama"), validate=nearness, accumulator_bit_width=14, tile_size=24,
            tuning=tuning, run=Run(state=tmp_path, progress=False),
        )  # fmt: skip

    found = tuned()
    assert isinstance(found.result, BlocksResult)
    assert found.certificate.ok
    assert not any(trial.refused for trial in found.trials)
    assert tuned().trials == found.trials
    with torch.no_grad():
        assert nearness(tuned().model) == pytest.approx(found.best.value)


@dataclass(frozen=True)
class Spying(Random):
    """A random search that keeps what it was told."""

    seen: tuple[list, ...] = ([],)

    def __call__(self, space, objective, budget, **more):
        self.seen[0].append((space, more["before"]))
        return super().__call__(space, objective, budget, **more)


def test_results_of_other_models_are_told_to_the_searcher(nine, tmp_path) -> None:
    found, state = nine
    spy = Spying()
    run(state=tmp_path, trials=3, accumulator_bit_width=10,
        tuning={"searcher": spy, "earlier": (state,)})  # fmt: skip
    [(space, before)] = spy.seen[0]
    assert [r.configuration for r in space.others] == [t.configuration for t in found.trials]
    values = [trial.value / found.unquantized for trial in found.trials]
    assert [r.value for r in space.others] == pytest.approx(values)
    assert {r.features["accumulator"] for r in space.others} == {9.0}
    assert (space.features["accumulator"], space.features["linear"]) == (10.0, 3)
    assert [c["widths"] for c, _ in before] == ["default", "best"]


def test_the_score_is_the_value_or_within_a_drop_the_cost() -> None:
    best = Goal(0.8)
    assert best.score(Trial({}, 0.4)) == 0.5
    assert math.isnan(best.score(Trial({}, refused="no")))
    assert math.isnan(best.score(Trial({}, 0.4, fits=False)))
    cheapest = Goal(0.8, "10%", "bops", reference=100.0)
    assert cheapest.needed == pytest.approx(0.72)
    scores = [
        cheapest.score(Trial({}, value, {"bops": cost}))
        for value, cost in ((0.5, 1.0), (0.71, 1.0), (0.73, 90.0), (0.8, 80.0))
    ]
    assert scores == sorted(scores)
    assert scores[1] < 0 < scores[2]
    assert Goal(-2.0, "10%").needed == pytest.approx(-2.2)
    assert Goal(2.0, 0.5).needed == 1.5


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "tune needs a limit"),
        ({"accumulator_bit_width": 9, "tuning": {"recipe": "nowhere"}}, "no recipe 'nowhere'"),
        ({"budget": {"watts": 3}}, "'watts' is not registered"),
        ({"budget": {"bops": -3}}, "positive number"),
        ({"budget": {"bops": "80%", "max_cycles": 9}}, "leave max_cycles out"),
        ({"accumulator_bit_width": 9, "tuning": {"recipe": AUTO}}, "tune chooses widths itself"),
        ({"max_drop": "a lot"}, "max_drop is a number"),
        ({"max_drop": -1.0}, "max_drop is a number"),
        ({"validate": 3}, "validate must be a function"),
        ({"tuning": {"decisions": {"colour": (1,)}}}, "'colour' is no decision"),
        ({"tuning": {"decisions": {"solver": ()}}}, "needs a list of values"),
        ({"tuning": {"decisions": {"solver": ("magic",)}}}, "'magic' is not registered"),
        ({"tuning": {"decisions": {"widths": ("W4A4",)}}}, "widths cannot be 'W4A4'"),
        ({"tuning": {"decisions": {"calibration": (2.0,)}}}, "calibration is a share"),
        ({"tuning": {"decisions": {"share": ("much",)}}}, "share is one of what"),
        ({"tuning": {"decisions": {"transforms": ("magic",)}}}, "'magic' is not registered"),
    ],
    ids=str,
)
def test_bad_requests_are_refused_before_any_work(options, words) -> None:
    judge = Closeness()
    given = {"accumulator_bit_width": 9, **options} if options.get("tuning") else options
    with pytest.raises(InvalidOption, match=words):
        run(**{"validate": judge, **given})
    assert judge.calls == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"minutes": 0}, "minutes must be"),
        ({"minutes": None}, "tune needs an end"),
        ({"trials": 0}, "trials must be"),
        ({"epochs": 1.5}, "epochs must be"),
        ({"searcher": "magic"}, "'magic' is not registered"),
        ({"searcher": "reinforce"}, "asks for a configuration again and again"),
        ({"cost": "watts"}, "'watts' is not registered"),
        ({"earlier": ("nowhere",)}, "no folder nowhere"),
    ],
    ids=str,
)
def test_bad_settings_are_refused(options, words) -> None:
    with pytest.raises(InvalidOption, match=words):
        Tuning(**options)


def test_what_the_model_cannot_do_is_raised_and_not_tried_again() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Bilinear(3, 3, 2)

        def forward(self, x):
            return self.layer(x, x)

    with pytest.raises((InvalidOption, UnsupportedLayer)):
        tune(Odd(), [torch.rand(4, 3)], validate=lambda model: 1.0, accumulator_bit_width=9,
             tuning=Tuning(trials=3), run=Run(progress=False))  # fmt: skip


def test_folders_of_solves_that_are_done_are_removed(nine) -> None:
    _, state = nine
    names = {path.name.partition("-")[0] for path in Path(state).glob("tune-*/*")}
    assert names == {"trials.jsonl", "plans", "result"}
    assert len(list(Path(state).glob("tune-*/result-*"))) == 1
