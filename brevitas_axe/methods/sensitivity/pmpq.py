"""PMPQ: what is lost when a layer's smallest weights are zeroed (CPTQuant, arXiv 2412.03599)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.methods.sensitivity.twin import Substitute
from brevitas_axe.registry import Facts, check_ranges


@dataclass(frozen=True)
class Pmpq:
    """Importance = rise of the metric when the smallest weights of the layer are zero.

    Attributes:
        share: of the weights that are zeroed.
    """

    share: float = 0.3
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="measured loss after pruning",
        export="finn",
        source="arXiv 2412.03599",
    )

    def __post_init__(self) -> None:
        check_ranges(self, share=(0, 1))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        work = [(name, (case, name, self.share)) for name in case.names]
        losses = trials.map(_pruned_loss, work)
        base = case.loss({})
        # Pruning may help by accident; that does not make a layer less than unimportant.
        rises = {n: max(float(v) - base, 0.0) for n, v in zip(case.names, losses, strict=True)}
        return from_importance(case.choices, rises)


def _pruned_loss(case: Case, name: str, share: float) -> float:
    return case.loss({name: Substitute(pruned(case.layer(name).weight.detach(), share))})


def pruned(weight: Tensor, share: float) -> Tensor:
    """The tensor with this share of its elements, the smallest ones, set to zero."""
    count = int(share * weight.numel())
    result = weight.clone().flatten()
    result[weight.abs().flatten().argsort(stable=True)[:count]] = 0
    return result.view_as(weight)


pmpq = Pmpq()
