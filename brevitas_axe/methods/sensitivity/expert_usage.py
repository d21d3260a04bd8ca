"""Importance by the tokens that a layer reads (QuantMoE-Bench, arXiv 2406.08155).

An expert to which few tokens of the calibration data are routed matters little. Layers that all
tokens pass have importance 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.model.running import first_input, hooked
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class ExpertUsage:
    """Importance = tokens that the layer reads, as a share of the most that any layer reads.

    Layers that no token is routed to have importance 0.
    """

    needs_inputs = False
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="tokens that are routed to an expert",
        export="finn",
        source="arXiv 2406.08155",
    )

    def __call__(self, case: Case, trials: Trials) -> Scores:
        [found] = trials.map(_tokens, [("tokens", (case,))])
        assert isinstance(found, list)
        most = max(found) or 1.0
        shares = (count / most for count in found)
        return from_importance(case.choices, dict(zip(case.names, shares, strict=True)))


def _tokens(case: Case) -> list[float]:
    """Rows of the inputs of every layer, over all data."""
    rows = dict.fromkeys(case.names, 0.0)

    def note(name: str, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        x = first_input(args, kwargs)
        # Of a linear layer each vector counts, of a convolution each sample.
        rows[name] += x.numel() / x.shape[-1] if isinstance(layer, nn.Linear) else len(x)

    twin, layers = case.sharing_copy()
    with hooked(layers, before=note), torch.no_grad():
        for args, kwargs in case.batches:
            twin(*args, **kwargs)
    return [rows[name] for name in case.names]


expert_usage = ExpertUsage()
