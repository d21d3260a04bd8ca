"""CMPQ: a layer whose output no other layer resembles is sensitive (CPTQuant, arXiv 2412.03599)."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from brevitas_axe.errors import EmptyCalibration
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.scores import Scores, from_importance
from brevitas_axe.methods.sensitivity.trials import Trials
from brevitas_axe.methods.sensitivity.twin import channel_axis, layer_outputs
from brevitas_axe.registry import Facts, check_ranges

# With fewer samples than this for each component, bases correlate by chance.
SAMPLES_PER_COMPONENT = 5


@dataclass(frozen=True)
class Cmpq:
    """Importance = 1 − mean SVCCA similarity of a layer's output with the other layers'.

    Outputs are averaged over positions, so that layers of different size can be compared; every
    calibration sample is one observation.

    Attributes:
        variance: share of a layer's variance that its leading components must explain.
        correlations: mean over so many canonical correlations, largest first; None for all. The
            authors' code takes 1, of all components (`cmpq:variance=1,correlations=1`), which is
            near 1 for any two layers with many channels.
    """

    variance: float = 0.99
    correlations: int | None = None
    facts = Facts(
        kind="MPW+MPA",
        granularity="layer",
        signal="correlation between layers",
        export="finn",
        source="arXiv 2412.03599",
    )

    def __post_init__(self) -> None:
        check_ranges(self, variance=(0, 1))
        if self.correlations is not None:
            check_ranges(self, correlations=(1, inf))

    def __call__(self, case: Case, trials: Trials) -> Scores:
        # One trial: every layer is compared with all others.
        (found,) = trials.map(
            _importance, [("importance", (case, self.variance, self.correlations))]
        )
        return from_importance(case.choices, dict(zip(case.names, found, strict=True)))


def _importance(case: Case, variance: float, correlations: int | None) -> list[float]:
    outputs = mean_outputs(case)
    parts = {name: leading(y, variance) for name, y in outputs.items()}
    importance = []
    for name in parts:
        others = [similarity(parts[name], parts[n], correlations) for n in parts if n != name]
        importance.append(max(1 - float(np.mean(others)), 0.0) if others else 1.0)
    return importance


def mean_outputs(case: Case) -> dict[str, np.ndarray]:
    """Layer → [samples, channels] output of the float model, averaged over positions."""
    twin, layers = case.sharing_copy()
    rows: dict[str, list[Tensor]] = {name: [] for name in layers}
    for batch in case.batches:
        with torch.no_grad():
            _, calls = layer_outputs(twin, layers, batch)
        for name, output in calls:
            by_channel = output.movedim(channel_axis(layers[name]), -1)
            rows[name].append(by_channel.reshape(len(output), -1, by_channel.shape[-1]).mean(1))
    outputs = {name: torch.cat(found).double().cpu().numpy() for name, found in rows.items()}
    for name, y in outputs.items():
        if len(y) < 2 * SAMPLES_PER_COMPONENT:
            raise EmptyCalibration(
                f"{len(y)} calibration samples run through layer '{name}', too few to correlate; "
                f"give {2 * SAMPLES_PER_COMPONENT} or more."
            )
    return outputs


def leading(y: np.ndarray, variance: float) -> np.ndarray:
    """Orthonormal directions over samples of the leading components.

    Args:
        y: [samples, channels].
        variance: share that they must explain; at most one component for every five samples is
            kept.

    Returns:
        [samples, components].
    """
    left, sizes, _ = np.linalg.svd(y - y.mean(0), full_matrices=False)
    real = int((sizes > sizes[:1] * 1e-10).sum())
    share = np.cumsum(sizes**2) / max((sizes**2).sum(), 1e-300)
    wanted = int(np.searchsorted(share, variance) + 1)
    return left[:, : min(wanted, real, len(y) // SAMPLES_PER_COMPONENT)]


def similarity(first: np.ndarray, second: np.ndarray, correlations: int | None = None) -> float:
    """Mean canonical correlation of two orthonormal bases, [samples, components] each.

    Args:
        first, second: the bases.
        correlations: only so many, largest first.
    """
    if not first.shape[1] or not second.shape[1]:
        return 0.0
    found = np.linalg.svd(first.T @ second, compute_uv=False).clip(0, 1)
    return float(found[:correlations].mean())


cmpq = Cmpq()
