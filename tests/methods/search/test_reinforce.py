"""The policy on planted losses, where the best configuration and the cost of each are known."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.search.protocol import Space
from brevitas_axe.methods.search.reinforce import Policy, Reinforce, reinforce
from brevitas_axe.registry import method

BITS = (2, 4, 8)
DECISIONS, STEPS, DELAY, TARGET = 8, 4000, 500, 4.5
SPACE = Space({f"layer{i}": BITS for i in range(DECISIONS)})


class Planted:
    """Loss and cost of 8 layers that do not affect each other, both additive.

    A layer loses harm·3^(2 - bits) and costs bits·size.
    """

    def __init__(self, seed: int, weight: float) -> None:
        generator = np.random.default_rng(seed)
        self.sizes = generator.integers(1, 4, DECISIONS)
        harms = generator.uniform(0.2, 1.0, DECISIONS)
        self.losses = harms[:, None] * 3.0 ** (2 - np.array(BITS))
        self.costs = self.sizes[:, None] * np.array(BITS) / self.sizes.sum()
        self.weight = weight

    def cost(self, positions) -> float:
        """Mean bits of a weight."""
        return float(self.costs[np.arange(DECISIONS), list(positions)].sum())

    def __call__(self, positions) -> float:
        loss = float(self.losses[np.arange(DECISIONS), list(positions)].sum())
        return -loss - self.weight * abs(1 - self.cost(positions) / TARGET)


def searched(planted: Planted, options: Reinforce, seed: int) -> Policy:
    policy = options.policy(SPACE, STEPS, seed)
    for _ in range(STEPS):
        positions = policy.sample()
        policy.learn(positions, planted(positions))
    return policy


def miss(planted: Planted, policy: Policy) -> float:
    return planted.cost(policy.best()) / TARGET - 1


@pytest.mark.parametrize("seed", range(4))
def test_it_decides_and_meets_the_cost(seed) -> None:
    planted = Planted(seed, weight=2.0)
    policy = searched(planted, Reinforce(delay=DELAY), seed)
    assert policy.mean_entropy() < 0.05
    assert abs(miss(planted, policy)) < 0.06


def test_without_a_weight_on_the_entropy_it_does_not_decide() -> None:
    policy = searched(Planted(0, weight=2.0), Reinforce(delay=DELAY, entropy=0.0), 0)
    assert policy.mean_entropy() > 0.3


def test_without_a_weight_on_the_cost_it_takes_many_bits() -> None:
    planted = Planted(0, weight=0.0)
    assert miss(planted, searched(planted, Reinforce(delay=DELAY), 0)) >= 0.6


def test_the_weight_of_the_entropy_grows_from_0_at_the_end_of_the_delay() -> None:
    policy = Reinforce(delay=3, entropy=0.5).policy(SPACE, 11)
    weights = []
    for _ in range(12):
        weights.append(policy.entropy_weight())
        policy.learn((0,) * DECISIONS, 0.0)
    assert weights[:4] == [0.0] * 4
    assert weights == sorted(weights)
    assert weights[7] == pytest.approx(0.25)  # halfway
    assert weights[11] == pytest.approx(0.5)


def test_in_the_delay_only_the_mean_moves() -> None:
    policy = Reinforce(delay=2, memory=0.9).policy(SPACE, 10)
    policy.learn((2,) * DECISIONS, -1.0)
    policy.learn((2,) * DECISIONS, -2.0)
    assert policy.mean == pytest.approx(-1.1)
    assert policy.best() == (0,) * DECISIONS
    assert policy.probabilities().tolist() == [[pytest.approx(1 / 3)] * 3] * DECISIONS
    policy.learn((2,) * DECISIONS, 1.0)
    assert policy.best() == (2,) * DECISIONS


def test_the_mean_takes_a_reward_before_the_reward_is_compared_with_it() -> None:
    """So the first reward of all has no advantage, and moves nothing."""
    policy = Reinforce(delay=0).policy(SPACE, 10)
    before = policy.logits.copy()
    policy.learn((1,) * DECISIONS, 5.0)
    assert np.array_equal(policy.logits, before)


@pytest.mark.parametrize("step", [0, 40])
def test_the_logits_follow_the_gradient_of_the_loss(step) -> None:
    """By differences, at two weights of the entropy; Adam's first step has the gradient's signs."""
    policy = Reinforce(delay=0, rate=0.1).policy(SPACE, 50, seed=1)
    for _ in range(step):
        policy.learn(policy.sample(), float(-policy.step))
    positions, advantage, logits = policy.sample(), 0.7, policy.logits.copy()

    def loss(changed: np.ndarray) -> float:
        policy.logits = changed
        shares = policy.probabilities()[np.arange(DECISIONS), list(positions)]
        return -advantage * np.log(shares).mean() + policy.entropy_weight() * policy.mean_entropy()

    expected, tiny = np.zeros_like(logits), 1e-6
    for place in np.ndindex(*logits.shape):
        unit = np.zeros_like(logits)
        unit[place] = tiny
        expected[place] = (loss(logits + unit) - loss(logits - unit)) / (2 * tiny)
    policy.logits = logits
    assert np.allclose(policy._gradient(positions, advantage), expected, atol=1e-8)


def test_decisions_may_have_different_numbers_of_values() -> None:
    space = Space({"one": (4,), "two": (2, 4), "four": (2, 4, 6, 8)})

    def objective(configuration) -> float:
        return float(configuration["two"] == 4) + float(configuration["four"] == 8)

    options = Reinforce(rate=0.1)
    assert options(space, objective, 400) == {"one": 4, "two": 4, "four": 8}
    rows = options.policy(space, 400).probabilities()
    assert rows.sum(-1).tolist() == [pytest.approx(1)] * 3
    assert rows[0, 1:].tolist() == [0.0] * 3


def test_options() -> None:
    assert method("search", "reinforce:delay=7,rate=0.1").delay == 7
    with pytest.raises(InvalidOption, match="rate"):
        method("search", "reinforce:rate=0")
    with pytest.raises(InvalidOption, match="memory"):
        method("search", "reinforce:memory=1")
    with pytest.raises(InvalidOption, match="first 2500 steps, and there are 100"):
        Reinforce(delay=2500)(SPACE, lambda configuration: 0.0, 100)
    assert reinforce.policy(SPACE, 800).entropy_weight() == 0.0
