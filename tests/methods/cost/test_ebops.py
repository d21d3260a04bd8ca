"""EBOPs count what is built: each weight once, and never less than HGQ counts of the weights."""

from __future__ import annotations

import numpy as np
import pytest

from brevitas_axe.methods.cost.ebops import ebops
from brevitas_axe.methods.cost.protocol import LayerShape
from brevitas_axe.plan import LayerPrecision

SHAPE = LayerShape("fc", "dense", inputs=12, outputs=5, vectors=49)


def effective_bits(weight: int) -> int:
    """Bits between the first and the last 1 of a weight, as HGQ counts them."""
    size = abs(weight)
    return size.bit_length() - ((size & -size).bit_length() - 1) if size else 0


@pytest.mark.parametrize("seed", range(5))
def test_the_count_of_real_weights_is_never_larger(seed: int) -> None:
    weights = np.random.default_rng(seed).integers(-8, 8, (5, 12))
    products = sum(effective_bits(int(w)) * 6 for w in weights.flat)
    cost = ebops(SHAPE, LayerPrecision(weight=4, input=6, accumulator=10))
    assert products <= cost - SHAPE.weights * 10


def test_positions_do_not_count_and_accumulators_do() -> None:
    one = LayerShape("fc", "dense", inputs=12, outputs=5, vectors=1)
    narrow, wide = (LayerPrecision(weight=4, input=6, accumulator=bits) for bits in (9, 12))
    assert ebops(one, narrow) == ebops(SHAPE, narrow) == 60 * (24 + 9)
    assert ebops(SHAPE, wide) - ebops(SHAPE, narrow) == 60 * 3


def test_tiles_bring_an_outer_accumulator() -> None:
    tiled = LayerPrecision(weight=4, input=6, accumulator=10, tile=4)
    whole = LayerPrecision(weight=4, input=6, accumulator=10)
    assert ebops(SHAPE, tiled) == ebops(SHAPE, whole) + 5 * 2 * 12
