"""QONNX's FloatQuant: floating-point numbers of few bits, as integers on their finest grid."""

from __future__ import annotations

import numpy as np

from brevitas_axe.proof.graph.grid import (
    Constant,
    Fact,
    Grid,
    Unprovable,
    checked_scale,
    is_constant,
    single_integer,
)
from brevitas_axe.proof.graph.modelfile import Node
from brevitas_axe.proof.graph.quantizers import Reading, constant_values

_WIDTHS = {"exponent width": (1, 5), "mantissa width": (0, 10), "exponent bias": (-64, 64)}
# Nearer than this to the middle between two numbers, readers may differ.
_ROUNDING = 2.0**-20


def float_quant(node: Node, facts: list[Fact], reading: Reading) -> Grid:
    """FloatQuant: the nearest number of the format to x / scale, times scale.

    Only the format as the file declares it counts: bits of exponent and mantissa, bias and largest
    number. It has subnormal numbers and both signs, and saturates.
    """
    where = f"quantizer '{node.name}'"
    if len(facts) != 6:
        raise Unprovable(f"{where} has {len(facts)} inputs instead of 6")
    if not node.attribute("saturation", 1):
        raise Unprovable(f"{where} does not saturate, and gives infinite values")
    if node.attribute("rounding_mode", "ROUND").upper() not in ("ROUND", "HALF_EVEN"):
        raise Unprovable(f"{where} does not round to nearest")
    exponent, mantissa, bias = (
        single_integer(constant_values(fact, f"the {what} of {where}"), f"the {what}", *ends)
        for fact, (what, ends) in zip(facts[2:5], _WIDTHS.items(), strict=True)
    )
    step = 2.0 ** (1 - bias - mantissa)
    largest = _largest(exponent, mantissa, step, facts[5], where)
    scale = checked_scale(constant_values(facts[1], f"the scale of {where}"), where)
    if scale.dtype.kind != "f":
        scale = scale.astype(np.float64)
    unit = scale * scale.dtype.type(step)
    if np.any(unit.astype(np.float64) != scale.astype(np.float64) * step):
        raise Unprovable(f"{where} has a scale too small for its type")
    declared = f"FLOAT<{exponent},{mantissa},{bias}>"
    source = facts[0]
    if not is_constant(source):
        return Grid(unit, -largest, largest, declared)
    if not isinstance(source, Constant):
        raise Unprovable(f"{where} rounds weights that are quantized already")
    values = constant_values(source, where)
    reading.budget.spend(values.size, f"what {where} rounds")
    if values.size == 0 or np.broadcast_shapes(scale.shape, values.shape) != values.shape:
        raise Unprovable(f"the scale of {where} does not fit its weights")
    ratio = values.astype(np.float64) / unit.astype(np.float64)
    integers = _rounded(ratio, mantissa, where).clip(-largest, largest)
    ends = int(integers.min()), int(integers.max())
    return Grid(unit, *ends, declared, integers, weight=source.name)


def _largest(exponent: int, mantissa: int, step: float, fact: Fact, where: str) -> int:
    """The largest number over step: that of all bit patterns, or the one that is declared."""
    declared = np.asarray(constant_values(fact, f"the largest number of {where}"))
    if declared.size != 1 or not np.isfinite(declared).all() or np.any(declared <= 0):
        raise Unprovable(f"{where} has no largest number")
    whole = ((2 ** (mantissa + 1)) - 1) << (2**exponent - 2)
    given = float(declared.reshape(-1)[0]) / step
    if given != int(given):
        raise Unprovable(f"the largest number of {where} is none of its format")
    return min(whole, int(given))


def _rounded(ratio: np.ndarray, mantissa: int, where: str) -> np.ndarray:
    """Nearest numbers over the finest step, int64; refuses what readers could round otherwise."""
    if not np.isfinite(ratio).all() or np.abs(ratio).max(initial=0) >= 2.0**62:
        raise Unprovable(f"{where} rounds weights that are infinite or NaN")
    _, power = np.frexp(ratio)
    gap = np.exp2(np.maximum(power - mantissa - 1, 0))
    parts = ratio / gap
    middle = np.abs(parts - np.floor(parts) - 0.5)
    if np.any(middle <= _ROUNDING * np.maximum(np.abs(parts), 1.0)):
        raise Unprovable(
            f"{where} rounds weights that lie so near to the middle between two numbers that "
            "readers of the file may round them differently"
        )
    return (np.rint(parts) * gap).astype(np.int64)
