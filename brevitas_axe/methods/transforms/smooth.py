"""SmoothQuant (arXiv 2211.10438), by Brevitas: outliers of the inputs move into the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from brevitas.graph.equalize import activation_equalization_mode
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.protocol import ROTATING
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Smooth:
    """x' = x/s and W' = W·diag(s) with s = max|x|^α / max|W|^(1−α), equation 4 of the paper.

    Every layer has factors of its own, in a multiplication in front of it. So it may follow a
    rotation; an equalization that is folded into the layer before may not.

    Attributes:
        strength: α, between 0 and 1.
        exclude: names of layers to leave alone.

    Raises:
        InvalidOption: a strength outside [0, 1].
    """

    strength: float = 0.5
    exclude: tuple[str, ...] = ()
    stage = ROTATING
    facts = Facts(
        kind="–",
        granularity="channel",
        signal="largest activation and weight",
        export="qonnx",
        source="arXiv 2211.10438",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.strength <= 1:
            raise InvalidOption(
                f"the strength of smooth lies between 0 and 1, but it is {self.strength}."
            )

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]:
        mode: Any = activation_equalization_mode(
            module, self.strength, blacklist_layers=list(self.exclude)
        )
        # Brevitas keeps the maxima of every position, which requires batches of equal length.
        mode.graph_act_eq.scale_fn = _channel_maxima
        with mode:
            for args, kwargs in calls:
                module(*args, **kwargs)
        return ()


def _channel_maxima(inp: Tensor, dim: int = 0) -> Tensor:
    """Largest magnitude of each channel; [batch, ..., K] to [1, ..., K] without the batch."""
    leading = tuple(range(inp.dim() - 1))
    return inp.abs().amax(leading, keepdim=True).squeeze(dim)


smooth = Smooth()
