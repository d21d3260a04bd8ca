"""Linear layers as two branches: input channels with outliers apart from all others.

Widths for channels of one layer, class MPW+MPA of the survey arXiv 2510.16805; the split by the
largest activations is that of LLM.int8() (arXiv 2208.07339). A quantizer has one width, so every
branch is a layer of its own, with an input quantizer, weight and accumulator bits in any plan, and
their results are added outside of the accumulators. Quantize the result layer by layer, so that
each branch has an input quantizer (`brevitas_axe.blocks.quantize_blocks`, or Brevitas's own
`layerwise_quantize`): one quantizer in front of the split would see both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.prepare import Batch, as_batches
from brevitas_axe.sensitivity.facts import Facts


class SplitLinear(nn.Module):
    """The linear layer as `rest(x without outliers) + outliers(x of them)`.

    Args:
        linear: to be split; its parameters are copied.
        channels: int64 [n], input channels with outliers, ascending.
    """

    rest_channels: Tensor
    outlier_channels: Tensor

    def __init__(self, linear: nn.Linear, channels: Tensor) -> None:
        super().__init__()
        inside = torch.zeros(linear.in_features, dtype=torch.bool, device=linear.weight.device)
        inside[channels] = True
        self.register_buffer("rest_channels", torch.nonzero(~inside).flatten())
        self.register_buffer("outlier_channels", torch.nonzero(inside).flatten())
        self.rest = _columns(linear, self.rest_channels, linear.bias)
        self.outliers = _columns(linear, self.outlier_channels, None)

    def forward(self, x: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]."""
        outliers = x.index_select(-1, self.outlier_channels)
        return self.rest(x.index_select(-1, self.rest_channels)) + self.outliers(outliers)


def _columns(linear: nn.Linear, channels: Tensor, bias: Tensor | None) -> nn.Linear:
    part = nn.Linear(len(channels), linear.out_features, bias is not None, device="meta")
    part.weight = nn.Parameter(linear.weight.detach()[:, channels].clone())
    if bias is not None:
        part.bias = nn.Parameter(bias.detach().clone())
    return part.train(linear.training)


@dataclass(frozen=True)
class ChannelSplit:
    """Splits linear layers by the largest magnitude that each input channel reaches.

    Attributes:
        share: of a layer's input channels that go to the branch of outliers, rounded up.
    """

    share: float = 1 / 32
    facts = Facts(
        kind="MPW+MPA",
        granularity="channel",
        signal="largest activation",
        export="qonnx",
        source="arXiv 2208.07339, 2510.16805",
    )

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise InvalidOption(f"share must lie between 0 and 1, not {self.share}.")

    def __call__(
        self, model: nn.Module, calibration: Iterable[Any], exclude: Iterable[str] = ()
    ) -> nn.Module:
        """A copy in which all linear layers of two or more inputs are split.

        Args:
            model: a float model; not modified.
            calibration: batches, see `brevitas_axe.prepare.as_batches`.
            exclude: names of layers to leave as they are.

        Raises:
            InvalidOption: an excluded layer does not exist, or there is nothing to split.
        """
        model, exclude = copy.deepcopy(model), tuple(exclude)
        modules = dict(model.named_modules())
        unknown = [name for name in exclude if name not in modules]
        if unknown:
            raise InvalidOption(f"the excluded layer '{unknown[0]}' is not in the model.")
        linears = {
            name: module
            for name, module in modules.items()
            if type(module) is nn.Linear and module.in_features > 1 and name not in exclude
        }
        reaches = _reaches(model, linears, as_batches(calibration))
        if not reaches:
            raise InvalidOption(
                "no float linear layer with two or more inputs is called; split the model before "
                "it is quantized."
            )
        for name, reach in reaches.items():
            count = -int(-self.share * len(reach) // 1)
            channels = reach.topk(min(count, len(reach) - 1)).indices.sort().values
            model.set_submodule(name, SplitLinear(linears[name], channels))
        return model


@torch.no_grad()
def _reaches(
    model: nn.Module, linears: dict[str, nn.Linear], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Layer → largest magnitude of each input channel; layers that are not called are left out."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(_: nn.Module, args: tuple) -> None:
            reach = args[0].detach().abs().flatten(0, -2).amax(0)
            known = found.get(name)
            found[name] = reach if known is None else torch.maximum(known, reach)

        return hook

    handles = [m.register_forward_pre_hook(watch(name)) for name, m in linears.items()]
    try:
        for args, kwargs in batches:
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


channel_split = ChannelSplit()
