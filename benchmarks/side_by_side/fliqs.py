"""The policy of FLIQS: a public implementation of the paper and ours, on one stream of rewards.

    python benchmarks/side_by_side/fliqs.py

Runs `SimplePolicy`, the reward `tunas_abs` and the policy's part of `ReinforceTrainer` of
RuslanZaripov/automl-fliqs (no licence: fetched, never kept here) and our `reinforce` on the same
configurations, losses and costs, and compares the logits of both. The trainer's methods are called
on an object that has only what they use, so that neither transformers nor TensorBoard is needed.
"""

from __future__ import annotations

import argparse
import sys
import types
from types import SimpleNamespace

import torch
from official import official
from records import add_arguments, print_table, write_json

from brevitas_axe.methods.search.protocol import Space
from brevitas_axe.methods.search.reinforce import Reinforce

REPOSITORY = "RuslanZaripov/automl-fliqs"
COMMIT = "9e56017568bd4daf99e25c7c9011f37624195487"
DECISIONS, OPTIONS, TARGET, WEIGHT = 8, (2, 4, 8), 4.5, 2.0
RATE, MEMORY, ENTROPY = 5e-3, 0.99, 0.5


def stub_imports() -> None:
    """Modules that the trainer's file imports and its policy does not use."""
    names = ("transformers", "torch.utils.tensorboard", "quant", "quant.quant_linear")
    for name in names:
        sys.modules[name] = types.ModuleType(name)
    sys.modules["transformers"].Trainer = object  # type: ignore[attr-defined]
    sys.modules["torch.utils.tensorboard"].SummaryWriter = object  # type: ignore[attr-defined]
    sys.modules["quant.quant_linear"].QuantLinear = object  # type: ignore[attr-defined]


class Official:
    """Their trainer without its training.

    Args:
        steps: of the whole search.
        delay: of these, without learning.
        dtype: of the logits; the trainer's own is float32.
    """

    def __init__(self, steps: int, delay: int, dtype: torch.dtype) -> None:
        from cost.cost import tunas_abs
        from policy.simple_policy import SimplePolicy
        from trainer.reinforce_trainer import ReinforceTrainer

        policy = SimplePolicy(DECISIONS, len(OPTIONS)).to(dtype)
        self._methods, self._reward = ReinforceTrainer, tunas_abs
        self._trainer = trainer = SimpleNamespace(
            policy_network=policy,
            rl_optimizer=torch.optim.Adam(policy.parameters(), lr=RATE),
            current_step=0,
            total_steps=steps,
            delay_steps=delay,
            ema_reward=None,
            ema_alpha=MEMORY,
            max_entropy_beta=ENTROPY,
            entropy_schedule_type="cosine",
            search_options=OPTIONS,
            num_decisions=DECISIONS,
            quantized_modules={},
            block_partitions=None,
            single_decision=False,
            writer=SimpleNamespace(add_scalar=lambda *_: None),
        )
        for name in ("entropy_beta_schedule", "cosine_schedule"):
            setattr(trainer, name, types.MethodType(getattr(ReinforceTrainer, name), trainer))

    def learn(self, positions: tuple[int, ...], loss: float, cost: float) -> float:
        """One step of theirs; returns the reward."""
        trainer = self._trainer
        shares, _ = self._methods._get_quant_prob_and_indices(trainer)
        reward = self._reward(cost, WEIGHT, TARGET, -loss, trainer.writer, trainer.current_step)
        advantage = reward - self._methods._update_reward_ema(trainer, reward)
        indices = torch.tensor(positions).unsqueeze(-1)
        self._methods._update_policy(trainer, advantage, shares, indices)
        trainer.current_step += 1
        return reward

    @property
    def logits(self) -> torch.Tensor:
        return self._trainer.policy_network.logits.detach()


def difference(steps: int, delay: int, seed: int, dtype: torch.dtype) -> dict[str, float]:
    """Largest difference of the logits after so many steps, and how far these have moved."""
    generator = torch.Generator().manual_seed(seed)
    theirs = Official(steps, delay, dtype)
    space = Space({f"layer{i}": OPTIONS for i in range(DECISIONS)})
    ours = Reinforce(delay, RATE, entropy=ENTROPY, memory=MEMORY).policy(space, steps)
    for _ in range(steps):
        drawn = torch.randint(len(OPTIONS), (DECISIONS,), generator=generator)
        positions = tuple(drawn.tolist())
        loss = float(torch.rand((), generator=generator) + 2.0)
        cost = sum(OPTIONS[position] for position in positions) / DECISIONS
        reward = theirs.learn(positions, loss, cost)
        ours.learn(positions, -loss - WEIGHT * abs(1 - cost / TARGET))
        assert abs(reward + loss + WEIGHT * abs(1 - cost / TARGET)) < 1e-12
    logits = torch.from_numpy(ours.logits)
    return {
        "largest difference": float((logits - theirs.logits).abs().max()),
        "largest move": float((logits - 0.5).abs().max()),
    }


def main() -> None:
    """Prints the differences for several lengths, delays and streams."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts = ("policy", "cost", "trainer")
    sys.path.insert(0, str(official(REPOSITORY, COMMIT, *parts)))
    stub_imports()
    rows = []
    for steps, delay in ((200, 0), (200, 50)) + (() if arguments.quick else ((2000, 250),)):
        for dtype in (torch.float64, torch.float32):
            for seed in range(3):
                found = difference(steps, delay, seed, dtype)
                row = {"steps": steps, "delay": delay, "their numbers": str(dtype)[6:]}
                rows.append({**row, "stream": seed, **found})
    print_table(f"Logits of FLIQS's policy; {REPOSITORY} at {COMMIT[:12]}", rows)
    write_json(
        arguments.output, {"benchmark": "side_by_side/fliqs", "commit": COMMIT, "rows": rows}
    )
    worst = max(row["largest difference"] for row in rows if row["steps"] == 200)
    if worst > 1e-6:
        sys.exit(f"the logits differ by {worst:.2g} after 200 steps")


if __name__ == "__main__":
    main()
