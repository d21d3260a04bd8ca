"""Operators that combine grids, or change the integers or the scale of one.

Each rule takes (node, facts of its inputs, reading) and returns the Grid of the output, or raises
Unprovable.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from brevitas_axe.proof.graph.grid import (
    Constant,
    Fact,
    Grid,
    Unknown,
    Unprovable,
    checked_scale,
    covering_type,
    exact_integers,
    is_constant,
)
from brevitas_axe.proof.graph.modelfile import Node
from brevitas_axe.proof.graph.moves import Rule, run
from brevitas_axe.proof.graph.quantizers import Reading, constant_values

# Integers up to here are told apart by float32.
_FLOAT32_EXACT = 2**24


def relu(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    source = _dynamic(node, facts[0])
    if np.any(source.scale < 0):
        raise Unprovable(f"Relu '{node.name}' of a negative scale is not followed")
    return replace(source, low=max(source.low, 0), high=max(source.high, 0))


def clip(node: Node, facts: list[Fact], reading: Reading) -> Fact:
    """Clip to bounds that lie on the grid, as exporters narrow eight bits to fewer."""
    source = facts[0]
    if reading.opset < 11:
        bounds = [np.float32(node.attribute(k, d)) for k, d in (("min", -3e38), ("max", 3e38))]
    else:
        given = [*facts[1:], None, None][:2]
        ends: list[Any] = [np.float64(-np.inf), np.float64(np.inf)]
        for index, fact in enumerate(given):
            if fact is not None:
                ends[index] = constant_values(fact, f"a bound of Clip '{node.name}'")
        bounds = ends
    if len(facts) == 1 and reading.opset >= 11:
        raise Unprovable(f"Clip '{node.name}' has no constant bound")
    if any(np.size(b) != 1 or np.isnan(b).any() for b in bounds):
        raise Unprovable(f"Clip '{node.name}' has no two constant bounds")
    if isinstance(source, Constant):
        reading.budget.spend(source.values.size, f"what Clip '{node.name}' bounds")
        clipped = np.clip(source.values, *(np.reshape(b, ()) for b in bounds))
        return replace(source, values=clipped.astype(source.values.dtype))
    if not isinstance(source, Grid) or not source.scalar or source.scale < 0:
        raise Unprovable(f"Clip '{node.name}' of this tensor is not followed")
    low, high = (float(np.reshape(b, ())) / float(source.scale) for b in bounds)
    low, high = max(low, float(source.low)), min(high, float(source.high))
    if low != int(low) or high != int(high) or low > high:
        raise Unprovable(f"the bounds of Clip '{node.name}' are no multiples of the scale")
    clipped = replace(source, low=int(low), high=int(high))
    if source.integers is None:
        return clipped
    return clipped.mapped(lambda array: np.clip(array, int(low), int(high)))


def add(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    left, right = facts
    if isinstance(left, Constant) or (isinstance(left, Grid) and left.integers is not None):
        left, right = right, left
    if is_constant(right):
        return _shifted(node, left, right)
    grids = _on_finest(node, [_real(node, left), _real(node, right)])
    if any(grid.asymmetric for grid in grids):
        raise Unprovable(f"Add '{node.name}' adds tensors with zero points")
    _same_scale(node, grids)
    low, high = sum(grid.low for grid in grids), sum(grid.high for grid in grids)
    united = _united(node, grids)
    return _held(node, replace(united, low=low, high=high, type=covering_type(low, high)))


def _held(node: Node, grid: Grid) -> Grid:
    """A computed grid whose integers float32 tells apart: rounding leaves them what they are."""
    if max(-grid.low, grid.high) > _FLOAT32_EXACT:
        raise Unprovable(f"{node.op} '{node.name}' rounds integers that float32 does not hold")
    return grid


def _shifted(node: Node, fact: Fact, constant: Fact, sign: int = 1) -> Grid:
    """A grid plus whole steps of it, as FINN writes signed activations."""
    source = _dynamic(node, _real(node, fact, widen=False))
    if not source.scalar:
        raise Unprovable(f"{node.op} '{node.name}' shifts a tensor with several scales")
    added = constant_values(constant, f"what '{node.name}' adds").astype(np.float64)
    steps = exact_integers(sign * added / float(source.scale))
    if steps is None:
        raise Unprovable(f"{node.op} '{node.name}' shifts by no whole number of steps")
    low, high = source.low + int(steps.min()), source.high + int(steps.max())
    if source.typed == (low, high):
        # FINN declares the type of a count of thresholds after its shift.
        return _held(node, replace(source, low=low, high=high, typed=None))
    if source.typed is not None:
        return _shifted(node, source.widened, constant, sign)
    before = source.unshifted or (source.low, source.high)
    shifted = replace(source, low=low, high=high, type=covering_type(low, high), unshifted=before)
    return _held(node, shifted)


def sub(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    if not is_constant(facts[1]):
        raise Unprovable(f"Sub '{node.name}' of two activations is not followed")
    return _shifted(node, facts[0], facts[1], sign=-1)


def mul(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """A grid times constants keeps its integers: only the scale changes."""
    left, right = facts
    if not isinstance(left, Grid):
        left, right = right, left
    if isinstance(left, Grid) and isinstance(right, Grid) and left.integers is None:
        # Of two grids the constant one is the scale, unless the other is constant too.
        left, right = (left, right) if right.integers is not None else (right, left)
    source, factor = _real(node, left), constant_values(right, f"a factor of '{node.name}'")
    reading.budget.spend_on((source.scale.shape, factor.shape), f"the scale of '{node.name}'")
    return _rescaled(node, source, source.scale * factor)


def div(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    divisor = constant_values(facts[1], f"the divisor of '{node.name}'")
    source = _real(node, facts[0])
    reading.budget.spend_on((source.scale.shape, divisor.shape), f"the scale of '{node.name}'")
    return _rescaled(node, source, source.scale / divisor)


def _rescaled(node: Node, source: Grid, scale: np.ndarray) -> Grid:
    scale = checked_scale(np.asarray(scale, np.result_type(scale, np.float32)), f"'{node.name}'")
    if (
        source.integers is not None
        and np.broadcast_shapes(scale.shape, source.integers.shape) != source.integers.shape
    ):
        raise Unprovable(f"the factor of '{node.name}' does not fit its tensor")
    return _held(node, replace(source, scale=scale))


def _on_finest(node: Node, grids: list[Grid]) -> list[Grid]:
    """Grids whose scales are powers of two of the finest one, on that scale.

    Only of quantizers without zero points: their integers are multiplied by the ratio.
    """
    if any(not grid.scalar or grid.asymmetric for grid in grids):
        return grids
    finest = min((grid.scale for grid in grids), key=lambda scale: abs(float(scale)))
    ratios = [float(grid.scale) / float(finest) for grid in grids]
    if all(ratio == 1 for ratio in ratios) or any(
        ratio < 1 or np.frexp(ratio)[0] != 0.5 or ratio > _FLOAT32_EXACT for ratio in ratios
    ):
        return grids
    return [
        replace(
            grid,
            scale=finest,
            low=grid.low * int(ratio),
            high=grid.high * int(ratio),
            type=covering_type(grid.low * int(ratio), grid.high * int(ratio)),
        )
        for grid, ratio in zip(grids, ratios, strict=True)
    ]


def _same_scale(node: Node, grids: list[Grid]) -> None:
    if any(not grid.scalar or grid.scale != grids[0].scale for grid in grids):
        raise Unprovable(
            f"{node.op} '{node.name}' joins tensors of different scales; share one quantizer"
        )


def _grid(node: Node, fact: Fact) -> Grid:
    if isinstance(fact, Unknown):
        raise Unprovable(fact.reason)
    if isinstance(fact, Constant):
        raise Unprovable(f"{node.op} '{node.name}' takes an unquantized constant")
    return fact


def _real(node: Node, fact: Fact, widen: bool = True) -> Grid:
    """A grid of floating-point numbers: in integer element types sums and products wrap around."""
    grid = _grid(node, fact)
    if grid.wraps:
        raise Unprovable(f"{node.op} '{node.name}' computes in an integer type, which wraps around")
    return grid.widened if widen else grid


def _dynamic(node: Node, fact: Fact) -> Grid:
    grid = _grid(node, fact)
    if grid.integers is not None:
        raise Unprovable(f"{node.op} '{node.name}' of a constant is not followed")
    return grid


def concat(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    grids = [_grid(node, fact) for fact in facts]
    if all(grid.integers is not None for grid in grids):
        size = sum(grid.constant.size for grid in grids)
        reading.budget.spend(size, f"Concat '{node.name}' of constants")
        integers = run(node, [grid.constant for grid in grids], reading)[0]
        scale = grids[0].scale
        if any(not grid.scalar or grid.scale != scale for grid in grids):
            scales = [np.broadcast_to(grid.scale, grid.constant.shape) for grid in grids]
            scale = checked_scale(run(node, scales, reading)[0], node.name)
        return replace(
            grids[0],
            integers=integers,
            scale=scale,
            low=min(grid.low for grid in grids),
            high=max(grid.high for grid in grids),
            asymmetric=any(grid.asymmetric for grid in grids),
        )
    return _united(node, grids)


def where(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    return _united(node, [_grid(node, fact) for fact in facts[1:]])


def _united(node: Node, grids: list[Grid]) -> Grid:
    """Smallest range that contains all of them, on their common scale."""
    _same_scale(node, grids)
    low, high = min(grid.low for grid in grids), max(grid.high for grid in grids)
    types = {grid.type for grid in grids if (grid.low, grid.high) == (low, high)}
    return Grid(
        scale=grids[0].scale,
        low=low,
        high=high,
        type=min(types, default=covering_type(low, high)),
        asymmetric=any(grid.asymmetric for grid in grids),
        wraps=any(grid.wraps for grid in grids),
        assumptions=tuple(dict.fromkeys(a for grid in grids for a in grid.assumptions)),
    )


ARITHMETIC: dict[str, Rule] = {
    "Relu": relu,
    "Clip": clip,
    "Concat": concat,
    "Where": where,
    "Add": add,
    "Sub": sub,
    "Mul": mul,
    "Div": div,
}
