"""Error of each layer's output, weighted by the loss's curvature. No model evaluation.

The error is that of weights solved under the choice's accumulator budget, for the rows with the
largest weights; the other rows are estimated from these (`Local.rows`). The weight of each output
channel is its diagonal of the Gauss-Newton Hessian of the metric. After HAWQ (arXiv 1905.03696) and
AXE (arXiv 2409.17092); the combination is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import torch
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.sensitivity.budgeted import (
    LayerMoments,
    error,
    for_choices,
    over_layers,
    problem,
    solve,
)
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.methods.sensitivity.twin import channel_axis, layer_outputs
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Local:
    """Harm = ½ Σ_rows h_r · (mean squared error of row r).

    Errors at different positions and in different channels are taken to be independent.

    Attributes:
        probes: random vectors per batch for the Hessian's diagonal.
        solver: registered solver, with options or without, run at its best quality.
        rows: number of rows solved in each group, those with the largest h_r · s_r², s_r being
            the start scale; the errors of the others are assumed proportional to it.
    """

    probes: int = 4
    solver: str = "gpfq"
    rows: int = 8
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="Hessian-weighted error of the budgeted solve",
        export="finn",
        source="ours, after arXiv 1905.03696",
        gradients=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, probes=(1, inf), rows=(1, inf))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        def weights() -> dict[str, tuple[Tensor, str, int]]:
            found = curvature(case, self.probes)
            return {name: (found[name], self.solver, self.rows) for name in case.names}

        harms = over_layers(case, trials, _harms, weights)
        return Scores(case.choices, {name: np.array(values) for name, values in harms.items()})


def _harms(
    case: Case, name: str, known: LayerMoments, weights: Tensor, solver: str, most: int
) -> list[float]:
    start = next(iter(case.weights[name].values())).scale.double()
    # A layer whose outputs no result depends on, such as an expert without tokens, has one number.
    weights = weights.expand(start.numel()).view_as(start)
    expected = weights * start.square()
    some = expected.topk(min(most, start.shape[1])).indices
    share = float(expected.gather(1, some).sum() / expected.sum()) if expected.any() else 1.0

    def chosen(values: Tensor) -> Tensor:
        """[groups, rows, ...] to [groups, some rows, ...]."""
        return values[torch.arange(len(some), device=some.device).unsqueeze(1), some]

    def harm(choice: LayerPrecision) -> float:
        whole = problem(case, name, choice, known)
        part = replace(whole, weight=chosen(whole.weight), scale=chosen(whole.scale))
        rows = error(part, solve(part, solver), chosen(known.outputs))
        return 0.5 * float((chosen(weights) * rows).sum()) / share

    return for_choices(case, name, harm)


def curvature(case: Case, probes: int) -> dict[str, Tensor]:
    """Diagonal of the metric's Gauss-Newton Hessian for each layer's output channels.

    With v a random root of the metric's Hessian at the output, the squares of J^T v estimate the
    diagonal of J^T H J.

    Returns:
        Layer → float64 [groups · rows], summed over output positions, averaged over samples.
    """
    root = case.metric.root
    if root is None:
        raise InvalidOption(
            f"the metric '{case.metric.name}' has no `root`, so its Hessian at the output is not "
            "known; use 'kl' or 'mse', or the scorer 'measured'."
        )
    twin, layers = case.differentiable()
    generator = case.generator()
    sums = {name: torch.zeros((), dtype=torch.float64) for name in layers}
    for batch, item in zip(case.batches, case.items, strict=True):
        with torch.enable_grad():
            result, calls = layer_outputs(twin, layers, batch)
        for probe in range(probes):
            vector = root(result.detach(), item, generator)
            slopes = torch.autograd.grad(
                result,
                [y for _, y in calls],
                vector,
                retain_graph=probe < probes - 1,
                allow_unused=True,
            )
            for (name, _), slope in zip(calls, slopes, strict=True):
                if slope is None:
                    continue
                by_channel = slope.detach().movedim(channel_axis(layers[name]), 0)
                square = by_channel.square().sum(tuple(range(1, slope.dim()))).double()
                sums[name] = sums[name] + square * (len(result) / (case.samples * probes))
    return sums


local = Local()
