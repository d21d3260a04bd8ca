"""Mean trace of each layer's Hessian times the squared quantization error.

HAWQ-V2 (arXiv 1911.03852): Ω = mean trace(H)·||ΔW||², by Hutchinson's estimator. Here ΔW is that of
the weights solved under the choice's budget, and activations have a term of their own, with the
Hessian with respect to the layer's input.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Generator, Tensor

from brevitas_axe.methods.sensitivity.budgeted import (
    LayerMoments,
    for_choices,
    over_layers,
    problem,
    solve,
)
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.metrics import output_tensor
from brevitas_axe.methods.sensitivity.scores import Scores
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.model.layers import Layer, unroll_weight
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.running import first_input, hooked, with_first_input
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Hutchinson:
    """Harm = ½·(mean trace of weights)·||ΔW||² + ½·(trace of inputs)·(mean squared input error).

    Attributes:
        probes: Rademacher vectors per batch and layer.
    """

    probes: int = 8
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="Hessian trace",
        export="finn",
        source="arXiv 1911.03852",
        gradients=True,
    )

    def __post_init__(self) -> None:
        check_ranges(self, probes=(1, inf))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        harms = over_layers(case, trials, _harms, lambda: traces(case, self.probes))
        return Scores(case.choices, {name: np.array(values) for name, values in harms.items()})


def _harms(
    case: Case, name: str, known: LayerMoments, weight_mean: float, input_trace: float
) -> list[float]:
    layer = case.layer(name)
    weight = unroll_weight(layer, layer.weight.detach()).double()

    def harm(choice: LayerPrecision) -> float:
        solved = problem(case, name, choice, known)
        moved = float((solve(solved).value(solved) - weight).square().sum())
        return 0.5 * (weight_mean * moved + input_trace * known.input_errors[choice.input])

    return for_choices(case, name, harm)


def traces(case: Case, probes: int) -> dict[str, tuple[float, float]]:
    """Layer → (mean trace of its weights' Hessian, trace of its input's), at least 0."""
    twin, layers = case.differentiable()
    offsets: dict[str, Tensor] = {}

    def shift(name: str, _: Layer, args: tuple, kwargs: dict) -> Batch:
        x = first_input(args, kwargs)
        # A layer that is called twice has one offset: for both calls, if shapes allow.
        if name not in offsets or offsets[name].shape != x.shape:
            offsets[name] = torch.zeros_like(x, requires_grad=True)
        return with_first_input(args, kwargs, x + offsets[name])

    generator = case.generator()
    weights: dict[str, list[float]] = {name: [] for name in layers}
    inputs: dict[str, list[float]] = {name: [] for name in layers}
    triples = zip(case.batches, case.reference, case.items, strict=True)
    for (args, kwargs), reference, item in triples:
        offsets.clear()
        with torch.enable_grad(), hooked(layers, before=shift):
            loss = case.metric.loss(output_tensor(twin(*args, **kwargs)), reference, item)
            variables = [t for n, layer in layers.items() for t in (layer.weight, offsets[n])]
            found = block_traces(loss, variables, probes, generator)
        for name, ours, theirs in zip(layers, found[::2], found[1::2], strict=True):
            weights[name].append(ours)
            inputs[name].append(theirs)
    return {
        name: (
            max(case.mean(weights[name]), 0.0) / layers[name].weight.numel(),
            max(case.mean(inputs[name]), 0.0),
        )
        for name in layers
    }


def block_traces(
    loss: Tensor, variables: list[Tensor], probes: int, generator: Generator
) -> list[float]:
    """Trace of each variable's own block of the Hessian: mean of v·Hv over Rademacher v.

    Args:
        loss: scalar with a graph.
        variables: tensors it depends on.
        probes: vectors per variable.
        generator: of the vectors.
    """
    slopes = torch.autograd.grad(loss, variables, create_graph=True, allow_unused=True)
    found = []
    for variable, slope in zip(variables, slopes, strict=True):
        total = 0.0
        for _ in range(probes if slope is not None and slope.requires_grad else 0):
            v = torch.randint(0, 2, variable.shape, generator=generator) * 2 - 1
            v = v.to(variable)
            (product,) = torch.autograd.grad(
                slope, [variable], v, retain_graph=True, allow_unused=True
            )
            total += 0.0 if product is None else float((v * product).sum())
        found.append(total / probes)
    return found


hutchinson = Hutchinson()
