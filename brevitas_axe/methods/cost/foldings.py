"""Foldings that meet a throughput with the least hardware."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from fractions import Fraction

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.cost.finn_nodes import HLS, Hardware, estimate
from brevitas_axe.methods.cost.protocol import Folding, LayerShape, divisors
from brevitas_axe.methods.cost.total import precisions
from brevitas_axe.plan import LayerPrecision, Plan

# Widest word that Vitis HLS handles; FINN streams PE·SIMD weights as one.
_WIDEST_WORD = 8191


def cycles_per_frame(frames_per_second: float, clock_mhz: float) -> int:
    """Clock cycles that every layer has for one frame.

    Raises:
        InvalidOption: there is not one cycle, or a number is not positive and finite.
    """
    if not (0 < frames_per_second < math.inf and 0 < clock_mhz < math.inf):
        raise InvalidOption(
            f"frames per second and clock must be positive numbers, not {frames_per_second} and "
            f"{clock_mhz} MHz."
        )
    # In whole numbers: a quotient of floats can miss a cycle, or have no end.
    cycles = int(Fraction(str(clock_mhz)) * 10**6 / Fraction(str(frames_per_second)))
    if cycles < 1:
        raise InvalidOption(
            f"{frames_per_second} frames per second leave no cycle at {clock_mhz} MHz; ask for "
            "fewer frames or a faster clock."
        )
    return cycles


def choose_folding(
    shape: LayerShape,
    precision: LayerPrecision,
    max_cycles: int,
    hardware: Hardware = HLS,
) -> Folding:
    """The folding of one layer with the least hardware among those within `max_cycles`.

    Fewest DSP blocks first, then LUTs, then multipliers, then outputs at once. FINN's SetFolding
    looks at cycles alone: it unfolds inputs first and outputs after them.

    Args:
        shape: of the layer.
        precision: its weight and input bits are needed.
        max_cycles: clock cycles per forward, at least 1.
        hardware: how FINN builds the node.

    Raises:
        InvalidPlan: weight or input bits are missing.
        InvalidOption: no folding is that fast.
        UnsupportedLayer: FINN cannot build the layer.
    """
    if not max_cycles >= 1:  # NaN too
        raise InvalidOption(
            f"max_cycles must be at least 1, not {max_cycles}; `cycles_per_frame` finds it."
        )
    widest = _WIDEST_WORD // (precision.weight_bits or 1)
    nodes = {
        folding: estimate(shape, precision, folding, hardware)
        for folding in _foldings(shape)
        if folding.pe * folding.simd <= widest
    }
    fast = {folding: node for folding, node in nodes.items() if node.cycles <= max_cycles}
    if not fast:
        fastest = min(node.cycles for node in nodes.values())
        raise InvalidOption(
            f"layer '{shape.name}' takes at least {fastest} cycles, but {max_cycles} are allowed; "
            "ask for fewer frames per second or a faster clock."
        )
    return min(fast, key=lambda f: (fast[f].dsp, fast[f].lut, f.pe * f.simd, f.pe))


def _foldings(shape: LayerShape) -> Iterator[Folding]:
    for pe in divisors(shape.outputs):
        for simd in divisors(shape.inputs):
            # The window in front of a depthwise node widens only when all channels are parallel.
            if shape.kind != "depthwise" or simd == 1 or pe == shape.outputs:
                yield Folding(pe, simd)


def choose_foldings(
    shapes: Mapping[str, LayerShape],
    plan: Plan,
    max_cycles: int,
    hardware: Hardware = HLS,
) -> dict[str, Folding]:
    """`choose_folding` for every layer: the slowest of them sets the pace.

    Raises:
        InvalidPlan: the plan and the shapes do not name the same layers, or bits are missing.
        InvalidOption: no folding of a layer is that fast.
        UnsupportedLayer: FINN cannot build a layer.
    """
    return {
        name: choose_folding(shapes[name], precision, max_cycles, hardware)
        for name, precision in precisions(plan, shapes).items()
    }
