"""Tiny transformers, solved block by block."""

from __future__ import annotations

import numpy as np
from torch import nn

from brevitas_axe.model.layers import find_layers, integer_weight
from brevitas_axe.run.quantize_blocks import quantize_blocks
from tests.run.tiny import LAYERS, batches, tiny

P, TILE = 14, 24


def integers(model: nn.Module) -> dict[str, np.ndarray]:
    found = find_layers(model)
    return {name: integer_weight(name, layer)[0].numpy() for name, layer in found.items()}


def solve(model: str | nn.Module, **options):
    """Solves a tiny model, given itself or by name."""
    widths = {"accumulator_bit_width": P, "tile_size": TILE, "progress": False, "quality": "fast"}
    kinds = {type(tiny(kind)): kind for kind in LAYERS}
    kind = model if isinstance(model, str) else kinds[type(model)]
    model = tiny(kind) if isinstance(model, str) else model
    return quantize_blocks(model, batches(kind), **{**widths, **options})
