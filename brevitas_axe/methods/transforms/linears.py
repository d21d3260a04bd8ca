"""Other classes of linear layers become nn.Linear, which all later steps look for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from brevitas_axe.methods.transforms.protocol import LINEARS
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.stack import to_linears
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts


@dataclass(frozen=True)
class Linears:
    """GPT-2's Conv1D, which stores its weight transposed, as nn.Linear of the same numbers.

    Attributes:
        exclude: not used: a layer that stays in float may be of either class.
    """

    exclude: tuple[str, ...] = ()
    stage = LINEARS
    facts = Facts(kind="–", granularity="layer", signal="none", export="finn", source="ours")

    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]:
        to_linears(module)
        return ()


linears = Linears()
