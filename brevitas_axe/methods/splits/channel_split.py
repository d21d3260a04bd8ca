"""Linear layers as two branches: input channels with outliers apart from all others.

Widths for channels of one layer, class MPW+MPA of the survey arXiv 2510.16805; the split by the
largest activations is that of LLM.int8() (arXiv 2208.07339). A quantizer has one width, so every
branch is a layer of its own, with an input quantizer, weight and accumulator bits in any plan, and
their results are added outside of the accumulators. Quantize the result layer by layer, so that
each branch has an input quantizer (`brevitas_axe.quantize_blocks`, or Brevitas's own
`layerwise_quantize`): one quantizer in front of the split would see both.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from math import ceil
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption, NonFiniteValues
from brevitas_axe.model.layers import find_unquantized
from brevitas_axe.model.prepare import Batch, as_batches
from brevitas_axe.model.running import evaluating, first_input
from brevitas_axe.registry import Facts

_ROOT = "model"


class SplitLinear(nn.Module):
    """The linear layer as `rest(x without outliers) + outliers(x of them)`.

    Args:
        linear: to be split; its parameters are copied.
        channels: int64 [n], input channels with outliers, in any order.

    Raises:
        InvalidOption: a channel does not exist, or one of the branches would have none.
    """

    rest_channels: Tensor
    outlier_channels: Tensor

    def __init__(self, linear: nn.Linear, channels: Tensor) -> None:
        super().__init__()
        chosen, inputs = set(channels.tolist()), linear.in_features
        if not chosen or not chosen < set(range(inputs)):
            raise InvalidOption(
                f"outliers must be some of the {inputs} input channels, and not all, but they are "
                f"{sorted(chosen)}; leave a channel for each branch."
            )
        inside = torch.zeros(inputs, dtype=torch.bool, device=linear.weight.device)
        inside[channels] = True
        self.register_buffer("rest_channels", torch.nonzero(~inside).flatten())
        self.register_buffer("outlier_channels", torch.nonzero(inside).flatten())
        self.rest = _columns(linear, self.rest_channels, linear.bias)
        self.outliers = _columns(linear, self.outlier_channels, None)
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]; the argument's name is that of nn.Linear."""
        outliers = input.index_select(-1, self.outlier_channels)
        return self.rest(input.index_select(-1, self.rest_channels)) + self.outliers(outliers)


def _columns(linear: nn.Linear, channels: Tensor, bias: Tensor | None) -> nn.Linear:
    part = nn.Linear(len(channels), linear.out_features, bias is not None, device="meta")
    part.weight = _parameter(linear.weight[:, channels], linear.weight)
    if bias is not None:
        part.bias = _parameter(bias, bias)
    return part


def _parameter(values: Tensor, like: Tensor) -> nn.Parameter:
    """A copy that is trained where the original is."""
    return nn.Parameter(values.detach().clone(), requires_grad=like.requires_grad)


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

        Layers that no batch reaches stay whole, and so do modules derived from nn.Linear. Exclude a
        layer whose weight other code reads: a split one has two.

        Args:
            model: a float model; not modified. Its copy is calibrated in evaluation mode.
            calibration: batches, see `brevitas_axe.model.prepare.as_batches`.
            exclude: names of layers to leave as they are, and of modules with all their layers.

        Raises:
            EmptyCalibration: there is no batch.
            InvalidOption: an excluded layer does not exist, or there is nothing to split.
            NonFiniteValues: a batch, or what reaches a layer, holds NaN or infinity.
        """
        if isinstance(exclude, str):
            raise InvalidOption(f"exclude is a list of names; give ['{exclude}'].")
        # The holder gives a model that is a layer itself a place to be replaced in.
        holder, exclude = nn.ModuleDict({_ROOT: copy.deepcopy(model)}), tuple(exclude)
        modules = dict(holder[_ROOT].named_modules(remove_duplicate=False))
        unknown = [name for name in exclude if name not in modules]
        if unknown:
            raise InvalidOption(f"the excluded layer '{unknown[0]}' is not in the model.")
        kept = {part for name in exclude for part in modules[name].modules()}
        linears = {
            name: module
            for name in find_unquantized(holder[_ROOT])
            if type(module := modules[name]) is nn.Linear
            and module.in_features > 1
            and module not in kept
        }
        reaches = _reaches(holder[_ROOT], linears, as_batches(calibration))
        if not reaches:
            raise InvalidOption(
                "no float linear layer with two or more inputs is called; split the model before "
                "it is quantized."
            )
        splits = {}
        for name, reach in reaches.items():
            count = ceil(Fraction(str(self.share)) * len(reach))
            channels = reach.topk(min(count, len(reach) - 1)).indices
            splits[linears[name]] = SplitLinear(linears[name], channels)
        # A layer that stands in several places is replaced in all of them.
        for path, module in list(holder.named_modules(remove_duplicate=False)):
            if module in splits:
                holder.set_submodule(path, splits[module])
        return holder[_ROOT]


@torch.no_grad()
def _reaches(
    model: nn.Module, linears: dict[str, nn.Linear], batches: Iterable[Batch]
) -> dict[str, Tensor]:
    """Layer → largest magnitude of each input channel; layers that are not called are left out."""
    found: dict[str, Tensor] = {}

    def watch(name: str):
        def hook(layer: nn.Linear, args: tuple, kwargs: dict) -> None:
            x = first_input(args, kwargs).detach().abs().reshape(-1, layer.in_features)
            if len(x) == 0:  # an expert without tokens
                return
            reach = x.amax(0)
            if not bool(reach.isfinite().all()):
                raise NonFiniteValues(
                    f"the input of layer '{name}' holds NaN or infinity, so its outliers cannot be "
                    "told; mend the model or its calibration data, or exclude the layer."
                )
            known = found.get(name)
            found[name] = reach if known is None else torch.maximum(known, reach)

        return hook

    handles = [
        m.register_forward_pre_hook(watch(name), with_kwargs=True) for name, m in linears.items()
    ]
    try:
        with evaluating(model):
            for args, kwargs in batches:
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found


channel_split = ChannelSplit()
