"""SmoothQuant (arXiv 2211.10438), by Brevitas: outliers of the inputs move into the weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from brevitas.graph.equalize import activation_equalization_mode
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.transforms.protocol import ROTATING
from brevitas_axe.methods.transforms.sites import channel_axis
from brevitas_axe.model.layers import Layer
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
        mode.graph_act_eq.forward_stats_hook = _channel_statistics(mode.graph_act_eq)
        with mode:
            for args, kwargs in calls:
                module(*args, **kwargs)
        return ()


def _channel_statistics(equalization: Any) -> Callable[..., None]:
    """Notes the largest magnitude of each channel of a layer's input.

    Brevitas keeps the maxima of every position instead, which requires batches of equal shape, and
    leaves out convolutions, whose maxima it compares with those of all weights of a channel.
    """
    usual = equalization.forward_stats_hook

    def note(module: nn.Module, *args: Any, name: nn.Module, **options: Any) -> None:
        # The name is the layer itself.
        axis = channel_axis(cast(Layer, name)) if hasattr(name, "kernel_size") else -1
        equalization.scale_fn = partial(_channel_maxima, axis)
        usual(module, *args, name=name, **options)

    return note


def _channel_maxima(axis: int, inp: Tensor, dim: int = 0) -> Tensor:
    """Largest magnitude of each channel; [batch, ..., C, ...] to [1, ..., C, ...], no batch."""
    others = tuple(i for i in range(inp.dim()) if i != axis % inp.dim())
    return inp.abs().amax(others, keepdim=True).squeeze(dim)


smooth = Smooth()
