"""From the integers of one dot product to its proof: the only place where a width is decided."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from brevitas_axe.accumulator import outer_bit_width, required_bit_width, worst_case_sums
from brevitas_axe.proof.certificate.certificate import DotProduct, Targets

_SCALED = "tiles have scales of their own; what adds their results is no integer accumulator"


@dataclass(frozen=True)
class Integers:
    """The integers that an accumulator adds up.

    Attributes:
        weights: integers of any signed type, [rows, K]. For a product of two activations, ones:
            then `low` and `high` bound each product.
        low: smallest input integer, ≤ 0.
        high: largest input integer, ≥ 0.
        bias: float64 [rows] in units of the accumulator, or None.
        scale_span: inputs of a row that share one weight scale, None for all of them.
        rows_last: the rows lie along the last axis of the result (or the channels of a
            convolution), not along the one before it.
        step: float64 [rows] or scalar, the real value of one unit of the accumulator; NaN where it
            differs between the outputs of one row, or between runs. Only entries and assumptions
            about an Add of results depend on it.
    """

    weights: np.ndarray
    low: int
    high: int
    bias: np.ndarray | None = None
    scale_span: int | None = None
    rows_last: bool = True
    step: np.ndarray | float = np.nan


@dataclass(frozen=True)
class Found:
    """A dot product before its proof: names, and its integers or the reason why it has none."""

    name: str
    op: str
    integers: Integers | None = None
    reason: str = ""
    layer: str | None = None
    weight: str | None = None
    shape: tuple[int, ...] | None = None
    weight_type: str | None = None
    input_type: str | None = None
    assumptions: tuple[str, ...] = ()


def prove(found: Found, targets: Targets) -> DotProduct:
    """Worst-case sums of every row and tile, and the widths that they need.

    Args:
        found: the dot product.
        targets: requested widths and tile sizes.

    Raises:
        InvalidTile: the requested tile size is not a positive integer.
    """
    names = tuple(n for n in (found.layer, found.name, found.weight) if n)
    target, tile_size = targets.of(names)
    entry = {
        field: getattr(found, field)
        for field in ("name", "op", "layer", "weight", "shape", "weight_type", "input_type")
    }
    integers = found.integers
    if integers is None or integers.weights.size == 0:
        reason = found.reason or "its weights are empty"
        return DotProduct(**entry, target=target, reason=reason, assumptions=found.assumptions)
    inputs = integers.weights.shape[1]
    tile_size = tile_size if tile_size is not None and tile_size < inputs else None
    span = integers.scale_span
    if span is not None and (tile_size is None or span % tile_size != 0):
        reason = (
            f"its weights have one scale per {span} inputs, and an accumulator adds numbers of one "
            f"scale only; give tiles of {span}"
        )
        return DotProduct(**entry, target=target, reason=reason, assumptions=found.assumptions)
    minimum, maximum = worst_case_sums(integers.weights, integers.low, integers.high, tile_size)
    low, high = int(minimum.min()), int(maximum.max())
    width = required_bit_width(low, high)
    # Computed from the whole row, since the sum over int64 tiles could wrap.
    row_low, row_high = (
        worst_case_sums(integers.weights, integers.low, integers.high)
        if tile_size
        else (minimum, maximum)
    )
    with_bias, note = width_with_bias(row_low[:, 0], row_high[:, 0], integers.bias)
    misses_target = tile_size is not None and target is not None and target < width
    # Results of tiles with different scales are scaled before they are added: no integer sum.
    adds_tiles = tile_size is not None and span is None
    return DotProduct(
        **entry,
        inputs=inputs,
        tile_size=tile_size,
        input_range=(integers.low, integers.high),
        minimum=low,
        maximum=high,
        width=width,
        outer_width=(
            required_bit_width(int(row_low.min()), int(row_high.max())) if adds_tiles else None
        ),
        outer_bound=(
            outer_bit_width(width if misses_target or target is None else target, inputs, tile_size)
            if adds_tiles
            else None
        ),
        width_with_bias=with_bias,
        target=target,
        proven=True,
        assumptions=(*found.assumptions, *note, *([] if span is None else [_SCALED])),
    )


def width_with_bias(
    minimum: np.ndarray, maximum: np.ndarray, bias: np.ndarray | None
) -> tuple[int | None, tuple[str, ...]]:
    """Width of row plus bias, in any order of addition, and the assumptions for it.

    A bias that is no multiple of weight scale × input scale is rounded away from zero.
    """
    if bias is None or not np.isfinite(bias).all():
        return None, ()
    nearest = np.rint(bias)
    # Rounding errors of a quantized bias: one float32 multiplication, and this division.
    integer = bool(np.all(np.abs(bias - nearest) <= 4 * np.finfo(np.float32).eps * np.abs(bias)))
    note = () if integer else ("the bias is not an integer; it is rounded away from zero",)
    low, high = 0, 0
    for row_low, row_high, value, near in zip(minimum, maximum, bias, nearest, strict=True):
        units = int(near) if integer else math.copysign(1, value) * math.ceil(abs(value))
        low = min(low, int(row_low) + min(int(units), 0))
        high = max(high, int(row_high) + max(int(units), 0))
    return required_bit_width(low, high), note
