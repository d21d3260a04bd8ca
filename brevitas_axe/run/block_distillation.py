"""A solved block learns to give what the float block gives, within its accumulators.

Blockwise distillation: all parameters of one block, with its layers' own quantizers, which keep
every accumulator at each step. Some batches are held out; the block keeps what it had unless what
it has learned is nearer to the float block on these.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.running import all_learned
from brevitas_axe.model.stack import Alone, Call
from brevitas_axe.run.finetune.groups import parameter_groups
from brevitas_axe.run.solve.reconstruct import commit

# Of biases and norms, per step; weights and scales in their own units, see `parameter_groups`.
RATE = 3e-3
# Largest share of the batches that is held out; one of them is at least.
HELD_OUT = 0.25
# Times in all at which what has been learned is judged.
CHECKS = 4

Pair = tuple[Call, Call]


def check_held_out(steps: int, batches: Sequence[object]) -> None:
    """Raises InvalidOption where no batch is left to learn from, before anything is solved."""
    if steps and len(batches) < 2:
        raise InvalidOption(
            "a block that learns is judged on a batch that it has not seen; give two batches of "
            "calibration or more, or leave the recipe's distill out."
        )


def distil(
    alone: Alone,
    pairs: Sequence[Pair],
    wanted: Sequence[Tensor],
    layers: dict[str, Layer],
    steps: int,
) -> dict[str, float | str]:
    """Trains one solved block, in place.

    Args:
        alone: the block.
        pairs: its inputs, batch by batch, as in `Alone.forward`; the last ones are held out.
        wanted: outputs of the float block.
        layers: its solved layers, by name; they are given the integers that they have learned.
        steps: of the optimizer, each on one batch.

    Returns:
        The block's name and its loss on what is held out, at the start, learned, and kept: mean
        squared error as a share of the float outputs' energy.

    Raises:
        NotProven: integers that do not fit their accumulator, which the quantizers prevent.
    """
    count = max(int(HELD_OUT * len(pairs)), 1)
    seen, judged = slice(len(pairs) - count), slice(len(pairs) - count, None)
    before = best = _parameters(alone)
    start = least = _loss(alone, pairs[judged], wanted[judged])
    learned = float("inf")
    with all_learned(alone):
        optimizer = torch.optim.Adam(parameter_groups(alone, RATE))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        given, targets = pairs[seen], wanted[seen]
        for step in range(steps):
            at = step % len(given)
            with torch.enable_grad():
                _share(alone(*given[at]), targets[at]).backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            if (step + 1) % max(steps // CHECKS, 1) == 0 or step + 1 == steps:
                loss = _loss(alone, pairs[judged], wanted[judged])
                learned = min(learned, loss)
                if loss < least:
                    least, best = loss, _parameters(alone)
    _restore(alone, best)
    if best is not before:
        for name, layer in layers.items():
            commit(name, layer)
    return {"block": alone.name, "start": start, "learned": learned, "kept": least}


def _share(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error as a share of the energy of what is wanted."""
    return (found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30)


@torch.no_grad()
def _loss(alone: Alone, pairs: Sequence[Pair], wanted: Sequence[Tensor]) -> float:
    return sum(
        float(_share(alone(*pair), target)) for pair, target in zip(pairs, wanted, strict=True)
    ) / len(pairs)


def _parameters(module: nn.Module) -> dict[str, Tensor]:
    return {name: copy.deepcopy(p.detach()) for name, p in module.named_parameters()}


@torch.no_grad()
def _restore(module: nn.Module, values: dict[str, Tensor]) -> None:
    for name, parameter in module.named_parameters():
        parameter.copy_(values[name])
