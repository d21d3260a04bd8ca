"""The results of quantization runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from brevitas_axe.model.attention_products import products_plan
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate import Certificate
from brevitas_axe.recipe import Recipe


@dataclass(frozen=True, repr=False)
class QuantizeResult:
    """What `quantize` returns.

    Attributes:
        model: the solved Brevitas model, in evaluation mode.
        plan: the final widths of every layer.
        certificate: proof from the live model.
        layers: one log entry per layer, in order of solving.
        recipe: everything else that was done, with every field resolved; together with the plan
            it gives the same integers again.
        assumptions: what must be true of the data for the rewrites of the float model to be
            exact, one sentence each.
        tried: where widths were chosen automatically, one row for every plan that was solved: its
            "widths", the "divergence" of its outputs from the float model's on the calibration
            data, and its "validation" where a function gives one.
        plans: of every row of `tried`, in the same order; a saved result does not keep them.
        shares: where a budget was a share, one row for every cost: the "share", "of" which uniform
            widths, what these cost ("reference"), and the "limit".
        exclude: names of layers and products that stay out of the certificate's verdict.
        example: arguments of one forward that meets every layer, with which the certificate is
            given again.
        learned: where a solver learns from whole blocks, for each of them its "block" of layers
            and its loss on the calibration data at the "start", as "learned" without a limit on
            accumulators, and as "kept"; the last one is the whole model.
    """

    model: nn.Module
    plan: Plan
    certificate: Certificate
    layers: list[dict]
    recipe: Recipe
    assumptions: tuple[str, ...] = ()
    tried: tuple[dict[str, Any], ...] = ()
    plans: tuple[Plan, ...] = ()
    shares: tuple[dict[str, Any], ...] = ()
    exclude: tuple[str, ...] = ()
    example: Batch | None = None
    learned: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        head = f"{type(self).__name__} of {type(self.model).__name__}"
        products = products_plan(self.model)
        attention = f"\n  attention products: {products!r}" if products.layers else ""
        return f"{head}\n  {self.plan!r}{attention}\n  {self.certificate!r}"

    def _repr_html_(self) -> str:
        return f"{self.plan._repr_html_()}\n{self.certificate._repr_html_()}"


@dataclass(frozen=True, repr=False)
class BlocksResult(QuantizeResult):
    """What a run block by block returns: `layers` says block, P_I and P_O of every layer as well.

    Attributes:
        floats: layers and products that stay in float, and that the certificate's verdict leaves
            out.
    """

    floats: tuple[str, ...] = ()
