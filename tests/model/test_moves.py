"""Operations that only move numbers, as modules."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from brevitas_axe.model.moves import Move, moves_as_modules


class Padded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x.flip(0), (1, 1))[:, ::2]


def test_what_is_moved_reads_the_same_in_every_process() -> None:
    """States and fingerprints hold it, so that a killed run could not go on otherwise."""
    model = moves_as_modules(torch.fx.symbolic_trace(Padded()))
    texts = [module.extra_repr() for module in model.modules() if isinstance(module, Move)]
    assert texts == ["flip", "pad", "getitem"]
    x = torch.rand(3, 5)
    assert torch.equal(model(x), Padded()(x))
