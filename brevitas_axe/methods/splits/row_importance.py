"""Linear layers as two branches by output row: the important ones get more bits.

Bits by the importance of output rows, arXiv 2308.07662 (reconstruction: no code is public). There,
importance is weight times gradient of the loss; a split sees one layer, and takes the loss that a
solver has there, the squared error of its outputs. Of that, what a row loses at few bits and what
more bits save is known without training, row by row.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import floor

import torch
from torch import Tensor

from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.methods.splits.protocol import Branch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts, check_ranges

# Bits where a plan gives none.
_OPEN_BITS = 4


@dataclass(frozen=True)
class RowImportance:
    """Splits linear layers by the error that more bits save in each output row.

    Attributes:
        share: of a layer's rows that get more bits, rounded down.
        more: bits that these rows get besides the planned ones.
        fewer: bits that an equal number of the least important rows give up, 0 for none.

    Raises:
        InvalidOption: an option outside its range.
    """

    share: float = 0.25
    more: int = 1
    fewer: int = 1
    facts = Facts(
        kind="MPW",
        granularity="row",
        signal="squared error of each output",
        export="qonnx",
        source="arXiv 2308.07662 (reconstruction)",
    )

    def __post_init__(self) -> None:
        check_ranges(self, share=(0, 1), more=(1, 8), fewer=(0, 8))

    def __call__(
        self, problem: LayerProblem, precision: LayerPrecision, sample: Tensor
    ) -> tuple[Branch, ...]:
        """Branches `more`, `rest` and `fewer`; see `brevitas_axe.methods.splits.Split`.

        With fewer bits for as many rows as get more, the mean of bits stays the planned one where
        `more` and `fewer` are equal. A layer stays whole where that would not lower the error of
        rounding to nearest.
        """
        bits = precision.weight_bits or _OPEN_BITS
        few = max(bits - self.fewer, 2)
        weight, hessian = problem.weight[0].double(), problem.hessian[0].double()
        saved = row_errors(weight, hessian, bits) - row_errors(weight, hessian, bits + self.more)
        lost = row_errors(weight, hessian, few) - row_errors(weight, hessian, bits)
        rows = len(weight)
        count = min(floor(self.share * rows), rows // 2 if few < bits else rows - 1)
        order = saved.argsort(descending=True)
        high = order[:count].sort().values
        left = order[count:]
        low = left[lost[left].argsort()[: count if few < bits else 0]].sort().values
        if count == 0 or (few < bits and bool(lost[low].sum() >= saved[high].sum())):
            return (Branch("rest", _all(problem), problem.weight[0], precision),)
        middle = torch.ones(rows, dtype=torch.bool)
        middle[torch.cat([high, low])] = False
        parts = {
            "more": (high, bits + self.more),
            "rest": (middle.nonzero().flatten(), bits),
            "fewer": (low, few),
        }
        return tuple(
            Branch(
                name,
                _all(problem),
                problem.weight[0][chosen],
                replace(precision, weight=width),
                rows=chosen,
            )
            for name, (chosen, width) in parts.items()
            if len(chosen)
        )


def _all(problem: LayerProblem) -> Tensor:
    return torch.arange(problem.columns)


def row_errors(weight: Tensor, hessian: Tensor, bits: int) -> Tensor:
    """Mean squared error of every output with weights rounded to nearest.

    Args:
        weight: [rows, K].
        hessian: [K, K].
        bits: of the weights; one scale per row, from its largest magnitude.
    """
    most = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(-1, keepdim=True) / most
    scale = scale.clamp_min(torch.finfo(weight.dtype).tiny)
    error = (weight / scale).round().clamp(-most, most) * scale - weight
    return (error * (error @ hessian)).sum(-1)


row_importance = RowImportance()
