"""How much rounding harms the readers of a tensor: what changes of it are compared by.

This is no solver, it only ranks changes; but it knows what comes after it. The input's grid has the
range of least squared error, as the usual method of the room `ranges` finds it, and the mean error
of every output is left out, for the solver puts it into the bias.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from brevitas_axe.methods.transforms.fold import vectors
from brevitas_axe.methods.transforms.protocol import Change, Site
from brevitas_axe.plan import LayerPrecision

# Ranges that are tried, as shares of the largest magnitude.
LEAST_SHARE, SHARES = 0.2, 20
# Squared errors below this share of the results are those of float64 itself.
_NOISE = 1e-24


def output_error(site: Site, change: Change, widths: LayerPrecision) -> float:
    """Variance of the readers' errors over the sample, summed over their outputs and vectors.

    Weights are rounded to nearest with one scale per output. A convolution is judged position by
    position of its kernel.

    Args:
        site: sample and weights.
        change: what is judged; `Change()` for none.
        widths: bits of weights and input; what is None is not rounded.
    """
    scale, shift = vectors(site, change)
    x = (site.sample.double() - shift) / scale
    near_x = x if (bits := widths.input_bits) is None else rounded(x, input_step(x, bits), bits)
    weights = (weight.double() * scale for weight in site.weights)
    return sum(reader_error(x, near_x, weight, widths.weight_bits) for weight in weights)


def reader_error(x: Tensor, near: Tensor, weight: Tensor, bits: int | None) -> float:
    """The error of one reader, see `output_error`.

    Args:
        x: [n, C], what it reads.
        near: [n, C], what it reads instead.
        weight: [rows, taps, C].
        bits: to which its weights are rounded.
    """
    weight = weight.double()
    right = x @ weight.flatten(0, 1).t()
    wrong = near @ _nearest_weight(weight, bits).flatten(0, 1).t() - right
    error = float((wrong - wrong.mean(0)).square().sum())
    return error if error > _NOISE * float(right.square().sum()) else 0.0


def best_change(site: Site, widths: LayerPrecision, changes: Iterable[Change]) -> Change | None:
    """The change with the least error, the first of equals; None where none is better than none."""
    best, least = None, output_error(site, Change(), widths)
    for change in changes:
        error = output_error(site, change, widths)
        if error < least:
            best, least = change, error
    return best


def input_step(x: Tensor, bits: int) -> Tensor:
    """Step of the signed grid without a zero point that rounds x with the least squared error."""
    largest = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny)
    steps = [largest * (share / 2 ** (bits - 1)) for share in _shares()]
    errors = torch.stack([(rounded(x, step, bits) - x).square().sum() for step in steps])
    return steps[int(errors.argmin())]


def rounded(x: Tensor, step: Tensor, bits: int) -> Tensor:
    """Numbers rounded to the signed grid of some bits and a step."""
    half = 2 ** (bits - 1)
    return (x / step).round().clamp(-half, half - 1) * step


def _shares() -> list[float]:
    return torch.linspace(1, LEAST_SHARE, SHARES).tolist()


def _nearest_weight(weight: Tensor, bits: int | None) -> Tensor:
    """[rows, taps, C] rounded to a narrow signed grid with one scale for each row."""
    if bits is None:
        return weight
    largest = weight.abs().amax((1, 2), keepdim=True)
    step = largest.clamp(min=torch.finfo(weight.dtype).tiny) / max(2 ** (bits - 1) - 1, 1)
    return (weight / step).round() * step
