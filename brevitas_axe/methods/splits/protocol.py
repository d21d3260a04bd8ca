"""Splits by name: one per file, named after the file, and those of other packages.

A split makes several branches of one layer, each with widths of its own. It is a pure function of
matrices; `brevitas_axe.methods.splits.layers.split_layers` applies it to the layers of a model,
and the solver's driver solves all branches of a layer as one problem.

To write your own: define, in a new file, an instance of a frozen dataclass that bears the file's
name, with `facts` and a `__call__` like that of `Split`; tests/contracts/test_splits.py runs over
every one of them. Two halves of the columns, the first with two bits more, are::

    @dataclass(frozen=True)
    class Halves:
        facts = Facts(kind="MPW", granularity="channel", signal="none", export="qonnx", source="-")

        def __call__(self, problem, precision, sample):
            half, wide = problem.columns // 2, replace(precision, weight=precision.weight + 2)
            low, high = torch.arange(problem.columns).split([half, problem.columns - half])
            weight = problem.weight[0]
            return (Branch("low", low, weight[:, low], wide),
                    Branch("high", high, weight[:, high], precision))

Another package registers its split under the entry-point group `brevitas_axe.splits`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from brevitas_axe.methods.solvers.problem import LayerProblem
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts


@dataclass(frozen=True, eq=False)
class Branch:
    """One branch of a layer.

    Attributes:
        name: of the branch: "low" of the layer "fc1" is the layer "fc1.low".
        columns: int64 [k], input channels in the order of the branch's tiles, each of them once;
            branches may share columns.
        weight: [rows, k] float weights.
        precision: widths of the branch.
        rows: int64 [rows], the output channels that the branch gives; None for all. Branches with
            rows are joined, those without are added; one layer has either the ones or the others.
        scale: start scale of the branch's quantizer, from which its solver searches: [rows], or
            [rows, tiles], which counts where every tile has a scale of its own; None to let the
            quantizer compute it from the weights.
    """

    name: str
    columns: Tensor
    weight: Tensor
    precision: LayerPrecision
    rows: Tensor | None = None
    scale: Tensor | None = None


class Split(Protocol):
    """A pure function from a layer to its branches, whose sum is the layer.

    Attributes:
        facts: for the catalogue.

    Args:
        problem: the float layer, one group: weights, second moments of its float inputs, and the
            ranges that the precision gives it.
        precision: widths that the plan gives the whole layer.
        sample: [n, K] inputs of the layer; the largest input of every channel is among them.

    Returns:
        The branches in the order in which they run; the first one gets the layer's bias. One
        branch without a start scale means that the layer is left as it is.
    """

    @property
    def facts(self) -> Facts: ...

    def __call__(
        self, problem: LayerProblem, precision: LayerPrecision, sample: Tensor
    ) -> tuple[Branch, ...]: ...
