"""Linear layers as two branches: input channels with outliers apart from all others.

Widths for channels of one layer, class MPW+MPA of the survey arXiv 2510.16805; the split by the
largest activations is that of LLM.int8() (arXiv 2208.07339).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# Bits of inputs where a plan gives none, and the fewest that are given.
_OPEN_BITS, _LEAST_BITS = 8, 2


@dataclass(frozen=True)
class ChannelSplit:
    """Splits linear layers by the largest magnitude of each input channel.

    Attributes:
        share: of a layer's input channels that go to the branch of outliers, rounded up.
        fewer: bits that the inputs of the other channels give up, down to 2. Without the outliers
            their range is narrow, and each bit doubles what an accumulator has room for.

    Raises:
        InvalidOption: an option outside its range.
    """

    share: float = 1 / 32
    fewer: int = 0
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
        check_ranges(self, fewer=(0, 8))

    def __call__(
        self, problem: LayerProblem, precision: LayerPrecision, sample: Tensor
    ) -> tuple[Branch, ...]:
        """Two branches, `rest` and `outliers`; see `brevitas_axe.methods.splits.Split`."""
        largest = sample.abs().amax(0)
        count = ceil(Fraction(str(self.share)) * len(largest))
        outlier = torch.zeros_like(largest, dtype=torch.bool)
        outlier[largest.topk(min(count, len(largest) - 1)).indices] = True
        sides = {"rest": torch.nonzero(~outlier).flatten(), "outliers": outlier.nonzero().flatten()}
        weight = problem.weight[0]
        narrow = precision
        if self.fewer:
            bits = precision.input_bits or _OPEN_BITS
            narrow = replace(precision, input=max(bits - self.fewer, _LEAST_BITS))
        widths = {"rest": narrow, "outliers": precision}
        return tuple(
            Branch(name, columns, weight[:, columns], widths[name])
            for name, columns in sides.items()
        )


channel_split = ChannelSplit()
