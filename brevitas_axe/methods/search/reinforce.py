"""A policy that learns while what it decides about is trained (FLIQS, arXiv 2308.03290).

Every decision has a logit per value, and a configuration is drawn from their softmax. The objective
is one step of training with that configuration; REINFORCE makes configurations likelier that were
better than the running mean. A weight on the entropy, which grows from 0, makes the policy decide
by the end. The order of the steps, their constants and their defaults are those of the public
implementation of the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.methods.search.protocol import (
    Asked,
    Objective,
    Positions,
    Space,
    check_questions,
)
from brevitas_axe.registry import Facts

# All logits at the start.
_START = 0.5
# Probabilities are never smaller, so that their logarithms stay finite.
_LEAST = 1e-8
# Shares of the running means of gradients and of their squares that stay at every step.
_ADAM = (0.9, 0.999)
# The delay where none is given: this part of all steps, but not more steps than published.
_DELAYED, _PUBLISHED_DELAY = 8, 2500


@dataclass(frozen=True)
class Reinforce:
    """REINFORCE on one logit per value, with a vanishing entropy.

    Adam moves a logit by `rate` per step at most, so a search needs a few thousand steps at the
    published rate, and a larger rate where there are fewer.

    Attributes:
        delay: steps at the start that draw all values equally and only follow the mean; None for
            an eighth of all steps, but not more than the published 2,500.
        rate: learning rate of the logits.
        temperature: of the softmax.
        entropy: weight of the mean entropy in the last step; it grows from 0 along a cosine.
        memory: share of the running mean of rewards that a new reward leaves.

    Raises:
        InvalidOption: a number out of its range.
    """

    delay: int | None = None
    rate: float = 5e-3
    temperature: float = 1.0
    entropy: float = 0.5
    memory: float = 0.99
    repeats = True
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="loss of weights in training",
        gradients=True,
        export="finn",
        source="arXiv 2308.03290",
    )

    def __post_init__(self) -> None:
        if self.delay is not None and self.delay < 0:
            raise InvalidOption(f"delay counts steps, so it cannot be {self.delay}.")
        if not (self.rate > 0 and self.temperature > 0):
            raise InvalidOption("reinforce takes a rate and a temperature above 0.")
        if not (self.entropy >= 0 and 0 <= self.memory < 1):
            raise InvalidOption("reinforce takes an entropy of at least 0 and a memory in [0, 1).")

    def __call__(
        self,
        space: Space,
        objective: Objective,
        budget: int,
        *,
        before: Asked = (),
        seed: int = 0,
    ) -> dict[str, Any]:
        check_questions(budget, before)
        policy = self.policy(space, len(before) + budget, seed)
        for _ in policy.repeated(space, before):
            pass
        for _ in range(budget):
            positions = policy.sample()
            policy.learn(positions, objective(space.at(positions)))
        return space.at(policy.best())

    def course(
        self, space: Space, asked: Asked, *, seed: int = 0
    ) -> Iterator[dict[str, tuple[float, ...]]]:
        """Probabilities of the values of every decision, in front of every step of a whole search.

        Args:
            space: of the search.
            asked: its configurations and their values, in order.
            seed: of the search.
        """
        for probabilities in self.policy(space, len(asked), seed).repeated(space, asked):
            rows = zip(space.decisions.items(), probabilities.tolist(), strict=True)
            yield {name: tuple(row[: len(values)]) for (name, values), row in rows}

    def policy(self, space: Space, steps: int, seed: int = 0) -> Policy:
        """The policy in front of the first of so many steps."""
        delay = self.delay
        if delay is None:
            delay = min(steps // _DELAYED, _PUBLISHED_DELAY)
        if steps and delay >= steps:
            raise InvalidOption(
                f"reinforce does not learn in its first {delay} steps, and there are {steps} in "
                "all; give a shorter delay, or more steps."
            )
        return Policy(
            self, [len(values) for values in space.decisions.values()], steps, delay, seed
        )


class Policy:
    """Logits of all decisions, [decisions, most values], and how they follow rewards.

    NumPy and a gradient by hand: for so few numbers, torch takes ten times as long.

    Args:
        options: rates and weights.
        counts: how many values each decision has.
        steps: of the whole search.
        delay: of these, at the start, which do not move the logits.
        seed: of the draws.

    Attributes:
        logits: those behind a decision's last value have no meaning.
        mean: running mean of the rewards; None before the first.
        step: how many rewards have been learned from.
    """

    def __init__(
        self, options: Reinforce, counts: Sequence[int], steps: int, delay: int, seed: int = 0
    ) -> None:
        self._options, self._steps, self._delay = options, steps, delay
        self._offered = np.arange(max(counts)) < np.array(counts)[:, None]
        self._even = self._offered / self._offered.sum(-1, keepdims=True)
        self._rows = np.arange(len(counts))
        self._generator = np.random.default_rng(seed)
        self.logits = np.full(self._offered.shape, _START)
        self._first, self._second = np.zeros_like(self.logits), np.zeros_like(self.logits)
        self.mean: float | None = None
        self.step = 0

    def probabilities(self) -> np.ndarray:
        """What the next configuration is drawn from, [decisions, most values]."""
        return self._even if self.step < self._delay else self._shares()[0]

    def _shares(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Probabilities that are not too small, the softmax itself, and what the first sum to."""
        logits = np.where(self._offered, self.logits / self._options.temperature, -np.inf)
        softmax = np.exp(logits - logits.max(-1, keepdims=True))
        softmax /= softmax.sum(-1, keepdims=True)
        large = np.maximum(softmax, _LEAST) * self._offered
        total = large.sum(-1, keepdims=True)
        return large / total, softmax, total

    def sample(self) -> Positions:
        """Draws the next configuration."""
        ends = self.probabilities().cumsum(-1)
        drawn = self._generator.random((len(ends), 1)) * ends[:, -1:]
        return tuple((ends <= drawn).sum(-1).tolist())

    def learn(self, positions: Positions, reward: float) -> None:
        """One step: the mean first, then the logits by the advantage over the new mean.

        Raises:
            NonFiniteValues: the reward is NaN or infinite.
        """
        reward = float(reward)
        if not math.isfinite(reward):
            raise NonFiniteValues(
                f"the reward of step {self.step + 1} is {reward}, from which no policy can learn; "
                "lower the learning rate of the weights, or look for bad values in the data."
            )
        memory = self._options.memory
        self.mean = reward if self.mean is None else memory * self.mean + (1 - memory) * reward
        if self.step >= self._delay:
            self._move(self._gradient(positions, reward - self.mean))
        self.step += 1

    def _gradient(self, positions: Positions, advantage: float) -> np.ndarray:
        """Of -advantage·mean log π(positions) + weight·mean entropy, by the logits."""
        shares, softmax, total = self._shares()
        slopes = -self.entropy_weight() * (self._logarithms(shares) + 1)
        slopes[self._rows, positions] -= advantage / shares[self._rows, positions]
        slopes /= len(shares)
        slopes = (slopes - (slopes * shares).sum(-1, keepdims=True)) / total
        slopes *= self._offered & (softmax >= _LEAST)
        slopes -= (slopes * softmax).sum(-1, keepdims=True)
        return softmax * slopes / self._options.temperature

    def _move(self, gradient: np.ndarray) -> None:
        """One step of Adam (arXiv 1412.6980), with its usual constants."""
        (keep, keep_square), tiny = _ADAM, 1e-8
        count = self.step - self._delay + 1
        self._first += (1 - keep) * (gradient - self._first)
        self._second += (1 - keep_square) * (gradient**2 - self._second)
        root = np.sqrt(self._second / (1 - keep_square**count))
        self.logits -= self._options.rate * self._first / (1 - keep**count) / (root + tiny)

    def entropy_weight(self) -> float:
        """Weight of the mean entropy in the present step: 0 up to the end of the delay."""
        done = (self.step - self._delay) / (self._steps - self._delay)
        return self._options.entropy * (1 - math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2

    def mean_entropy(self) -> float:
        """Mean entropy of the decisions, in nats."""
        shares = self.probabilities()
        return float(-(shares * self._logarithms(shares)).sum(-1).mean())

    def best(self) -> Positions:
        """The likeliest value of every decision, of equal ones the first."""
        return tuple(np.where(self._offered, self.logits, -np.inf).argmax(-1).tolist())

    def repeated(self, space: Space, asked: Asked) -> Iterator[np.ndarray]:
        """Makes earlier steps again from their rewards; yields `probabilities` before each.

        Raises:
            InvalidOption: this policy would not have asked these questions.
        """
        for configuration, reward in asked:
            positions = space.positions(configuration)
            yield self.probabilities()
            if self.sample() != positions:
                raise InvalidOption(
                    f"step {self.step + 1} of `before` belongs to another search; give the steps "
                    "of this one in their order, with the same seed and as many steps in all."
                )
            self.learn(positions, reward)

    def _logarithms(self, shares: np.ndarray) -> np.ndarray:
        """Of the probabilities; 0 where there is no value."""
        return np.log(np.where(self._offered, shares, 1.0))


reinforce = Reinforce()
