"""Experts that no token reaches once the layers in front of the router are quantized.

Which experts have few tokens is counted before a block is solved. Few bits may change what the
router sees so much that an expert is left without any; it is then called like those with few.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from torch import nn

from brevitas_axe.model.layers import is_inside
from brevitas_axe.model.routing import Calibrated, called


@contextmanager
def calling_unreached(
    model: nn.Module, experts: Calibrated, missing: Sequence[str]
) -> Iterator[Calibrated]:
    """Context in which experts without tokens get those of the experts beside them.

    Args:
        model: contains the experts.
        experts: as they were counted.
        missing: names of layers that no forward has come to.

    Returns:
        The experts, those that are called from now on among the ones with shared statistics.
    """
    names = [name for each in experts.experts for name in each.names()]
    unreached = {
        name
        for name in names
        if name not in experts.shared and any(is_inside(layer, (name,)) for layer in missing)
    }
    with called(model, experts.experts, unreached):
        yield replace(experts, shared=(*experts.shared, *sorted(unreached)))
