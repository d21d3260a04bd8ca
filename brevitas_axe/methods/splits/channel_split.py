"""Linear layers as two branches: input channels with outliers apart from all others.

Widths for channels of one layer, class MPW+MPA of the survey arXiv 2510.16805; the split by the
largest activations is that of LLM.int8() (arXiv 2208.07339).
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import torch
from torch import Tensor

from brevitas_axe.errors import InvalidOption
from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class ChannelSplit:
    """Splits linear layers by the largest magnitude of each input channel.

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
        self, problem: LayerProblem, precision: LayerPrecision, sample: Tensor
    ) -> tuple[Branch, ...]:
        """Two branches, `rest` and `outliers`; see `brevitas_axe.methods.splits.Split`."""
        largest = sample.abs().amax(0)
        count = ceil(Fraction(str(self.share)) * len(largest))
        outlier = torch.zeros_like(largest, dtype=torch.bool)
        outlier[largest.topk(min(count, len(largest) - 1)).indices] = True
        sides = {"rest": torch.nonzero(~outlier).flatten(), "outliers": outlier.nonzero().flatten()}
        weight = problem.weight[0]
        return tuple(
            Branch(name, columns, weight[:, columns], precision) for name, columns in sides.items()
        )


channel_split = ChannelSplit()
