"""The kernels of kernels.py as torch operations, for devices that no other kernels are for.

Same names, arguments and integers, up to ties of floating-point numbers. Many operations per
column: devices.py says which devices have faster kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.kernels import LARGEST_MAGNITUDE
from brevitas_axe.model.l1_ball import ball_threshold


def quantize_block(
    start: int,
    stop: int,
    backward: bool,
    forgets_shrinkage: bool,
    near: Tensor,
    pivot: Tensor,
    carried: Tensor,
    base: Tensor,
    target: Tensor,
    tile_of: Tensor,
    scale: Tensor,
    threshold: Tensor,
    input_low: Tensor,
    input_high: Tensor,
    weight_low: Tensor,
    weight_high: Tensor,
    room_above: Tensor,
    room_below: Tensor,
    integers: Tensor,
    error: Tensor,
    residual: Tensor,
) -> None:
    """Decides the columns [start, stop); see the kernel of this name."""
    group = torch.arange(len(base), device=base.device)
    columns = range(stop - 1, start - 1, -1) if backward else range(start, stop)
    for k in columns:
        t = k - start
        known = slice(t + 1, stop - start) if backward else slice(0, t)
        past, coupling = (whole[:, start:stop][:, known] for whole in (error, near))
        corrected = carried[:, t] + (coupling[:, :, t].unsqueeze(1) @ past).squeeze(1)
        p = pivot[:, k : k + 1]
        corrected = torch.where(p == 0, 0, base[:, k] - corrected / torch.where(p == 0, 1, p))
        place = (group, tile_of[:, k])
        s = scale[place]
        shrunk = (corrected.abs() - threshold[place]).clamp_min(0)
        magnitude = (shrunk / s).clamp_max(LARGEST_MAGNITUDE)

        # Everything that the guarantee rests on is int64.
        negative = corrected < 0
        low, high = -input_low[:, k : k + 1], input_high[:, k : k + 1]
        grow_above, grow_below = torch.where(negative, low, high), torch.where(negative, high, low)
        least, greatest = -weight_low[:, k : k + 1], weight_high[:, k : k + 1]
        above, below = room_above[place], room_below[place]
        most = magnitude.ceil().long()
        too_large = (most * grow_above > above) | (most * grow_below > below)
        cut = most - 1
        for room, grow in ((above, grow_above), (below, grow_below)):
            fits = room.div(grow.clamp_min(1), rounding_mode="floor")
            cut = torch.where(grow > 0, torch.minimum(cut, fits), cut)
        most = torch.where(too_large, cut, most)
        magnitude = torch.where(too_large, torch.minimum(magnitude, most.to(magnitude)), magnitude)
        q = torch.minimum(magnitude.round().long(), most)
        q = torch.minimum(q, torch.where(negative, least, greatest))
        room_above[place] = above - q * grow_above
        room_below[place] = below - q * grow_below
        q = torch.where(negative, -q, q)
        integers[:, k] = q

        value = s * q
        residual += (p * (value - corrected)).double().square()
        error[:, k] = value - target[:, k]
        if forgets_shrinkage:
            error[:, k] += corrected - torch.copysign(s * magnitude, corrected)


def l1_thresholds(weight: Tensor, edges: Tensor, radius: Tensor, threshold: Tensor) -> None:
    """Threshold of the projection of every centred tile on an l1 ball; see the kernel."""
    for tile, part in enumerate(weight.double().split(edges.diff().tolist(), -1)):
        ball = radius[:, tile : tile + 1].double()
        level = ball_threshold((part - part.mean(-1, keepdim=True)).abs(), ball)
        threshold[:, tile] = level.squeeze(-1).clamp_min(0)
