"""Triangular factors of second-moment matrices that may be singular."""

from __future__ import annotations

import torch
from torch import Tensor

from brevitas_axe.errors import NonFiniteValues

# Each retry damps ten times more: from 1e-12 of the mean diagonal, 20 exceed any rounding error.
RETRIES = 20


def damped_factor(moments: Tensor, damping: Tensor) -> tuple[Tensor, Tensor]:
    """Upper factor U with U^T U = moments + damping I.

    A matrix that is numerically indefinite is tried again in float64, with ten times the damping
    each time, so that a factor always exists.

    Args:
        moments: [groups, K, K], symmetric.
        damping: [groups], not negative.

    Returns:
        (U [groups, K, K] in the dtype of moments, the damping that was used [groups]).

    Raises:
        NonFiniteValues: no damping helps, because the moments are not finite.
    """
    damped = moments.clone()
    damped.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
    factor, failed = torch.linalg.cholesky_ex(damped)
    if not bool(failed.any()):
        return factor.mT, damping
    # Rounding may have left negative numbers on the diagonal.
    size = moments.diagonal(dim1=-2, dim2=-1).double().abs().mean(-1)
    damping = torch.maximum(damping.double(), 1e-12 * size).clamp_min(1e-30)
    for _ in range(RETRIES):
        damped = moments.double()
        damped.diagonal(dim1=-2, dim2=-1).add_(damping.unsqueeze(-1))
        factor, failed = torch.linalg.cholesky_ex(damped)
        if not bool(failed.any()):
            return factor.mT.to(moments.dtype), damping.to(moments.dtype)
        damping = torch.where(failed > 0, 10 * damping, damping)
    raise NonFiniteValues("The layer's second moments cannot be factored: they are not finite.")
