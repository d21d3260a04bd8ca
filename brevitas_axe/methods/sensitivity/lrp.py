"""Relevance of layers (LRP-QViT, arXiv 2401.11243)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.metrics import class_axis
from brevitas_axe.methods.sensitivity.relevance import propagating
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.methods.sensitivity.twin import layer_outputs
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Lrp:
    """Importance = mean over samples of Σ|R|, R the relevance at the layer's output.

    It sums to 1 over layers. In a plain chain relevance is conserved, so all layers get the same:
    the method tells branches apart, residual or of attention. Relevance starts as 1 at the largest
    output of every sample (of every position, where there are several).

    Attributes:
        rules: of sums and products of activations: "ours" splits them by |share|, "published" as
            the code that the paper builds on, with signs, whose relevances can be of any size.
    """

    rules: Literal["ours", "published"] = "ours"
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="relevance propagation",
        export="finn",
        source="arXiv 2401.11243",
        gradients=True,
    )

    def __call__(self, case: Case, trials: Trials) -> Scores:
        found = relevances(case, trials, self.rules == "published")
        total = sum(found.values())
        return from_importance(
            case.choices, {name: value / (total or 1.0) for name, value in found.items()}
        )


def relevances(case: Case, trials: Trials, published: bool = False) -> dict[str, float]:
    """Layer → mean over samples of Σ|R| at its output; one trial per batch."""
    batches = range(len(case.batches))
    work = [(f"batch {index}", (case, index, published)) for index in batches]
    total = np.sum(trials.map(_batch_relevances, work), axis=0) / case.samples
    return dict(zip(case.names, total.tolist(), strict=True))


def _batch_relevances(case: Case, index: int, published: bool) -> list[float]:
    # Weights take no relevance, whether they are trained or not.
    twin, layers = case.sharing_copy(frozen=True)
    args, kwargs = case.batches[index]
    leaves = tuple(map(_leaf, args)), {key: _leaf(a) for key, a in kwargs.items()}
    with torch.enable_grad(), propagating(published):
        result, calls = layer_outputs(twin, layers, leaves)
    axis = class_axis(result)
    start = torch.zeros_like(result).scatter_(axis, result.argmax(axis, keepdim=True), 1.0)
    found = torch.autograd.grad(result, [y for _, y in calls], start, allow_unused=True)
    total = dict.fromkeys(layers, 0.0)
    for (name, _), relevance in zip(calls, found, strict=True):
        total[name] += 0.0 if relevance is None else float(relevance.abs().sum())
    return list(total.values())


def _leaf(x: object) -> object:
    """A floating-point input as a leaf of the graph, which relevance needs; others as they are."""
    if isinstance(x, Tensor) and x.is_floating_point():
        return x.detach().clone().requires_grad_(True)
    return x


lrp = Lrp()
