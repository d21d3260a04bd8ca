"""Rounding as something that is learned: a number between 0 and 1 for every weight.

AdaRound (Nagel et al., arXiv 2004.10568): a weight w is rounded to s (floor(w / s) + h(V)) with
h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1); a penalty of 1 - |2h - 1|^b, whose b falls from 20 to 2,
drives h to 0 or 1. The module is Brevitas's `LearnedRoundSte`. Constants are those of BRECQ's code
(arXiv 2102.05426), except that steps are fewer and longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from brevitas.core.function_wrapper import Identity
from brevitas.core.function_wrapper.learned_round import LearnedRoundHardSigmoid, LearnedRoundSte
from torch import Tensor

# Ends of the stretched sigmoid.
ZETA, GAMMA = 1.1, -0.1
# Sharpness b of the penalty, at its start and at its end.
SHARP, BLUNT = 20.0, 2.0
PUBLISHED_STRENGTH = 0.01
# So far from a half at least.
_TIE = 1e-4

Variable = Literal["rounding", "scale", "both"]
Optimizer = Literal["adam", "sgd", "sign"]


def beside(ratio: Tensor, integers: Tensor) -> Tensor:
    """Positions half a step from the integers at most, on the side of the weights.

    They are rounded to these integers, and learning may move each to its other neighbour. Where the
    integers are the nearest ones, the positions are the weights.

    Args:
        ratio: weights / scale.
        integers: a start, in the same shape.
    """
    # At exactly a half, errors of a float would decide.
    most = 0.5 - _TIE
    return integers + (ratio - integers).clamp(-most, most)


def learned(position: Tensor) -> Any:
    """Brevitas's module, whose soft rounding of these positions gives them back unchanged.

    Args:
        position: as `beside` gives it.
    """
    share = position - position.floor()
    start = -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)
    return LearnedRoundSte(LearnedRoundHardSigmoid(ZETA, GAMMA), start, Identity()).train()


def committed(rounding: Any, position: Tensor) -> Tensor:
    """The integers that a module has learned, as floats: h = [V >= 0]."""
    return position.floor() + (rounding.value.detach() >= 0)


@dataclass(frozen=True)
class Schedule:
    """How long is learned, and how the penalty grows sharp.

    Attributes:
        steps: of the optimizer.
        rate: its learning rate.
        strength: factor of the penalty, summed over the weights of a layer; for blocks see
            `brevitas_axe.run.solve.reconstruct`.
        warmup: share of the steps before the penalty sets in.
        optimizer: "adam", "sgd", or "sign", which steps by the gradient's sign.
    """

    steps: int
    rate: float
    strength: float
    warmup: float
    optimizer: Optimizer = "adam"

    def built(self, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimizer."""
        if self.optimizer == "adam":
            return torch.optim.Adam(parameters, self.rate)
        return torch.optim.SGD(parameters, self.rate)

    def step(self, optimizer: torch.optim.Optimizer, number: int) -> None:
        """One step; "sign" replaces gradients by their signs, and its rate falls to zero."""
        if self.optimizer == "sign":
            for group in optimizer.param_groups:
                group["lr"] = self.rate * (1 - number / self.steps)
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.grad.sign_()
        optimizer.step()
        optimizer.zero_grad()

    def penalty(self, roundings: Iterable[Any], number: int) -> Tensor:
        """What h that is neither 0 nor 1 costs at this step."""
        began = self.warmup * self.steps
        total = torch.zeros(())
        if number < began or self.strength == 0:
            return total
        share = (number - began) / max(self.steps - began, 1)
        sharpness = BLUNT + (SHARP - BLUNT) * max(0.0, 1 - share)
        for rounding in roundings:
            h = rounding.learned_round_impl(rounding.value)
            total = total + (1 - (2 * h - 1).abs().pow(sharpness)).sum().to(total.device)
        return self.strength * total
