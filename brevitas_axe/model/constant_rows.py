"""A linear layer for tokens that change, beside results for those that never do."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from brevitas_axe.model.running import dequantized


class ConstantRows(nn.Module):
    """Gives fixed results for some tokens, and a layer's for all others.

    Args:
        layer: takes [..., tokens, inputs].
        places: the tokens with fixed results, ascending.
        rows: their results, [places, outputs].

    Attributes:
        layer: gets the other tokens only, so that its quantizer never sees these.
    """

    rows: Tensor

    def __init__(self, layer: nn.Module, places: Sequence[int], rows: Tensor) -> None:
        super().__init__()
        self.layer, self.places = layer, tuple(places)
        self.register_buffer("rows", rows)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., tokens, inputs] to [..., tokens, outputs]; every place must be a token.

        The argument's name is that of nn.Linear.
        """
        x = dequantized(input)
        # Slices with fixed ends, so that the module can be traced.
        starts = (0, *(place + 1 for place in self.places))
        ends = (*self.places, None)
        others = [x[..., start:end, :] for start, end in zip(starts, ends, strict=True)]
        given = self.layer(torch.cat(others, -2))
        parts, done = [], 0
        for index, place in enumerate(self.places):
            upto = place - index  # so many tokens before it are not fixed
            parts += [given[..., done:upto, :], self.rows[index].expand_as(given[..., :1, :])]
            done = upto
        return torch.cat([*parts, given[..., done:, :]], -2)
