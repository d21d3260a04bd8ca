"""The Euclidean projection on an l1 ball, in torch, on any device."""

from __future__ import annotations

import torch
from torch import Tensor


def ball_threshold(sizes: Tensor, radius: Tensor) -> Tensor:
    """Threshold by which the projection on an l1 ball lowers every magnitude, in closed form.

    Duchi et al. 2008, doi 10.1145/1390156.1390191, figure 1.

    Args:
        sizes: magnitudes [..., K].
        radius: of each row's ball [..., 1].

    Returns:
        [..., 1]; at most 0 for rows inside their ball.
    """
    ordered = sizes.sort(-1, descending=True).values
    excess = ordered.cumsum(-1) - radius
    count = torch.arange(1, sizes.shape[-1] + 1, device=sizes.device)
    active = (ordered * count > excess).sum(-1, keepdim=True).clamp(min=1)
    return excess.gather(-1, active - 1) / active


def project_on_ball(rows: Tensor, radius: Tensor) -> Tensor:
    """Euclidean projection on l1 balls.

    Args:
        rows: [..., K].
        radius: of each row's ball [..., 1], > 0.

    Returns:
        [..., K]; rows inside their ball come back bit for bit.
    """
    sizes = rows.abs()
    shrunk = rows.sign() * (sizes - ball_threshold(sizes, radius)).clamp(min=0)
    return torch.where(sizes.sum(-1, keepdim=True) <= radius, rows, shrunk)
