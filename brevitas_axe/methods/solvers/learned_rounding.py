"""Learned rounding, layer by layer or block by block, under an accumulator budget.

Which of its two neighbours each weight is rounded to is learned by gradients (AdaRound, arXiv
2004.10568; by block: BRECQ, arXiv 2102.05426; for transformers, with gradients on all of rounding
and scale: arXiv 2308.07662). Scope "layer" learns from the second moments of the layer's inputs.
Wider scopes start from a layer-wise solution and learn from what whole blocks, or the model, give;
`brevitas_axe.run.solve.reconstruct` drives them.

What is learned knows no budget; it is then brought within by error diffusion, in exact integers.
The start is a candidate, before and after: no row loses.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.best import improve
from brevitas_axe.methods.solvers.problem import (
    LayerProblem,
    LayerSolution,
    Quality,
    about_means,
    expanded,
    with_bias_shift,
)
from brevitas_axe.methods.solvers.rounding import (
    Optimizer,
    Schedule,
    Variable,
    beside,
    committed,
    learned,
)
from brevitas_axe.methods.solvers.within_budget import better, rounded, within
from brevitas_axe.registry import Facts, check_ranges, method

# Start that is no solver: every weight to its nearest integer.
NEAREST = "nearest"


@dataclass(frozen=True)
class LearnedRounding:
    """Rounding learned by gradients.

    Attributes:
        scope: "layer", from second moments; "block" and "model", from outputs.
        start: where learning starts: "nearest", or a solver of this room, such as "qronos".
        steps, rate, strength, warmup, optimizer: see `brevitas_axe.methods.solvers.rounding`.
        variable: what is learned: the rounding, the scale of every row, or both.
        loss: of wider scopes: "mse" of the outputs, "fisher", the same weighted with the Fisher
            information of the float model (BRECQ), or "kl", of their softmax along the last axis.
        drop: of wider scopes: share of the numbers that enter a block and are taken from the float
            model at each step, instead of from the quantized one (QDrop, arXiv 2203.05740).
        seed: of what is dropped.

    Raises:
        InvalidOption: an option outside its range.
    """

    scope: Literal["layer", "block", "model"] = "layer"
    start: str = NEAREST
    steps: int = 200
    rate: float = 0.05
    strength: float = 0.01
    warmup: float = 0.2
    optimizer: Optimizer = "adam"
    variable: Variable = "rounding"
    loss: Literal["mse", "fisher", "kl"] = "mse"
    drop: float = 0.0
    seed: int = 0
    uses_float_inputs = True
    facts = Facts(
        kind="–",
        granularity="layer or block",
        signal="inputs and outputs, quantized and float",
        export="finn",
        source="arXiv 2004.10568, 2102.05426, 2308.07662",
        gradients=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, steps=(1, math.inf), rate=(0, math.inf), strength=(0, math.inf))
        check_ranges(self, warmup=(0, 1), drop=(0, 1))
        if self.start.partition(":")[0] == "learned_rounding":
            raise InvalidOption("learned_rounding cannot start from itself; name another solver.")

    @property
    def schedule(self) -> Schedule:
        """How it is learned."""
        return Schedule(self.steps, self.rate, self.strength, self.warmup, self.optimizer)

    def __call__(
        self, problem: LayerProblem, *, act_order: bool = False, quality: Quality = "fast"
    ) -> LayerSolution:
        """See `brevitas_axe.methods.solvers.Solver`; wider scopes get their start."""
        if quality not in ("fast", "best"):
            raise InvalidOption(f'quality is "fast" or "best", not {quality!r}.')
        if self.start == NEAREST:
            found = rounded(problem)
        else:
            solver = method("solvers", self.start)
            found = solver(problem, act_order=act_order, quality=quality)
        if self.scope == "layer":
            found = self.learned(problem, found)
        if quality == "fast" or self.start != NEAREST:
            return found
        found = improve(problem, replace(found, bias_shift=None))
        if self.scope == "layer":
            found = self.learned(problem, found)
        return found

    def learned(self, problem: LayerProblem, start: LayerSolution) -> LayerSolution:
        """Learns from a solution; every row is the better of both, by its exact loss."""
        # Where the bias takes the mean error, what is left is measured about the means.
        view = replace(problem, quant_mean=None, float_mean=None)
        if start.bias_shift is not None:
            view = about_means(problem)
        best = replace(start, bias_shift=None)
        for found in self._candidates(view, best):
            best = better(view, found, best)
        return best if start.bias_shift is None else with_bias_shift(problem, best)

    def _candidates(self, problem: LayerProblem, start: LayerSolution) -> list[LayerSolution]:
        with torch.enable_grad():
            integers, scale = _learn(problem, start, self.schedule, self.variable)
        value = integers * expanded(scale, problem)
        return [within(problem, value, scale, multiple) for multiple in (0.0, 1.0)]


def _learn(
    problem: LayerProblem, start: LayerSolution, schedule: Schedule, variable: Variable
) -> tuple[Tensor, Tensor]:
    """(integers as floats [groups, rows, K], scale) that were learned; no budget is kept."""
    dtype = problem.dtype
    weight, hessian = problem.weight.detach().to(dtype), problem.hessian.detach().to(dtype)
    cross = hessian if problem.cross is None else problem.cross.detach().to(dtype)
    wanted = weight @ cross.mT
    low, high = problem.weight_range
    scale = start.scale.detach().to(dtype)
    fixed = problem.shared_scale or problem.power_of_two
    position = beside(weight / expanded(scale, problem), start.integers.to(dtype))
    rounding: Any = learned(position)
    # The logarithm of what each row's scale is multiplied by.
    factor = torch.zeros_like(scale[..., :1] if scale.ndim == 3 else scale).requires_grad_()
    learnable = [rounding.value] if variable != "scale" else []
    if variable != "rounding" and not fixed:
        learnable.append(factor)
    if not learnable:
        return start.integers.to(dtype), scale
    optimizer = schedule.built(learnable)
    for number in range(schedule.steps):
        soft = rounding(position) if variable != "scale" else start.integers.to(dtype)
        value = soft.clamp(low, high) * expanded(scale * factor.exp(), problem)
        # A half of the gradient of the loss x H x - 2 x G w, times x: the loss but for a constant.
        loss = (value * (value @ hessian - 2 * wanted)).sum()
        if variable != "scale":
            loss = loss + schedule.penalty([rounding], number).to(loss)
        loss.backward()
        schedule.step(optimizer, number)
    scale = (scale * factor.exp()).detach()
    integers = committed(rounding, position) if variable != "scale" else start.integers
    # Weights of one bit have no neighbour that they could be rounded to instead.
    integers = torch.where(problem.binary_columns, start.integers, integers)
    return integers.to(dtype).clamp(low, high), scale


learned_rounding = LearnedRounding()
