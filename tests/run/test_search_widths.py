"""`search_widths`: comes near the cost, proves, resumes to the same bits, refuses by name."""

from __future__ import annotations

import pytest
import torch

from brevitas_axe.errors import InvalidOption, InvalidPlan, NotProven
from brevitas_axe.model.layers import find_layers
from brevitas_axe.recipe import Run
from brevitas_axe.run.finetune.shared_weights import Training
from brevitas_axe.run.saving.load import load
from brevitas_axe.run.saving.save import save
from brevitas_axe.run.search_widths import search_widths
from tests.run.finetune.nets import all_integers, batches, block, conv_net, same

WIDTH = 12
OFFERED = {"weight": (2, 4, 8), "accumulator": (WIDTH,)}


def searched(model=None, loader=None, budget=None, choices=None, **more):
    training = more.pop("training", Training(epochs=40, learning_rate=3e-3))
    return search_widths(
        conv_net() if model is None else model,
        batches("conv", 4) if loader is None else loader,
        {"bops": "60%"} if budget is None else budget,
        OFFERED if choices is None else choices,
        searcher=more.pop("searcher", "reinforce:rate=0.15"),
        training=training,
        run=Run(state=more.pop("state", None), progress=False),
        **more,
    )


@pytest.fixture(scope="module")
def result():
    return searched()


def test_the_plan_is_near_the_cost_and_proven(result) -> None:
    # 12 of its 27 plans are within a quarter of the target.
    assert abs(result.cost / result.target - 1) < 0.3
    assert result.trained.certificate.ok
    assert set(result.plan.layers) == set(find_layers(result.model))
    for name, layer in find_layers(result.model).items():
        precision = result.plan[name]
        assert precision.weight == precision.input in OFFERED["weight"]
        assert precision.accumulator == layer.weight_quant.accumulator_bit_width == WIDTH
        assert layer.weight_quant.input_range.bit_width == precision.input
    assert not result.model.training


def test_every_step_and_epoch_is_told(result) -> None:
    assert len(result.asked) == 160
    assert [entry["epoch"] for entry in result.trained.history] == list(range(41))
    assert result.trained.history[-1]["loss"] < result.trained.history[1]["loss"]
    assert result.trained.history[-1]["reward"] > result.trained.history[1]["reward"]
    course = list(result.course())
    assert len(course) == 160
    for name, shares in course[0].items():
        assert shares == pytest.approx([1 / 3] * 3)
        preferred = result.space.decisions[name][max(range(3), key=course[-1][name].__getitem__)]
        assert preferred == (result.plan[name],)
    assert "epoch 40 of 40" in repr(result.trained)


def test_what_it_returns_can_be_saved_and_is_the_same_when_loaded(result, tmp_path) -> None:
    again = load(save(result.trained, tmp_path / "saved"))
    assert same(all_integers(again.model), all_integers(result.model))
    assert again.plan == result.plan


def test_the_model_that_is_given_stays_as_it_is() -> None:
    model = conv_net()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    searched(model, training=Training(epochs=1))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[key], value) for key, value in before.items())


class Killed(Exception):
    pass


def test_a_run_that_was_killed_continues_to_the_same_bits(tmp_path) -> None:
    def loss(output, batch):
        return torch.nn.functional.cross_entropy(output, batch[1])

    calls = 0

    def killing(output, batch):
        nonlocal calls
        calls += 1
        if calls == 11:
            raise Killed
        return loss(output, batch)

    settings = {"epochs": 4, "learning_rate": 3e-3}
    whole = searched(training=Training(**settings, loss=loss))
    model = conv_net()
    before = torch.get_rng_state()
    with pytest.raises(Killed):
        searched(model, training=Training(**settings, loss=killing), state=tmp_path)
    assert torch.equal(torch.get_rng_state(), before)
    calls = 100
    rest = searched(training=Training(**settings, loss=killing), state=tmp_path)
    assert calls == 100 + 8  # two whole epochs were kept
    assert rest.asked == whole.asked
    assert rest.plan == whole.plan
    assert same(all_integers(rest.model), all_integers(whole.model))


def test_other_costs_and_inputs_that_are_chosen_apart() -> None:
    offered = {"weight": (2, 4), "input": (2, 8), "accumulator": (WIDTH, None), "tile": (None, 4)}
    result = searched(
        budget={"macs_accumulator": "90%"}, choices=offered, training=Training(epochs=2)
    )
    assert len(result.space.decisions["6"]) == 12  # tiles only where there is a budget
    assert result.trained.certificate.ok


def test_requests_that_cannot_be_met_are_refused_by_name() -> None:
    with pytest.raises(InvalidOption, match="'grid' asks for no plan twice"):
        searched(searcher="grid")
    with pytest.raises(InvalidOption, match="one cost to come near to, such as bops; 2 are given"):
        searched(budget={"bops": 1e6, "memory": 100})
    with pytest.raises(InvalidOption, match="finn_cycles is no budget"):
        searched(budget={"finn_cycles": 10})
    for budget in (0, 1e12):
        with pytest.raises(InvalidOption, match="offered cost from 15872 to 253952"):
            searched(budget={"bops": budget})
    with pytest.raises(InvalidOption, match="has no quantizers"):
        searched(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, 4)))
    with pytest.raises(NotProven, match=r"Block\.forward"):
        searched(block(), batches("block", 2))


def test_floating_point_formats_are_refused_by_the_layers_name() -> None:
    with pytest.raises(InvalidPlan, match="'0' is planned in e2m1, but one training run switches"):
        searched(choices={"weight": (4, "e2m1"), "input": (4, 8)}, budget={"bops": "90%"})
