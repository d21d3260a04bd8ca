"""What a layer costs: memory, bit operations, and FINN's estimates of hardware."""

from brevitas_axe.methods.cost.breakdowns import Breakdown, LayerCost, breakdown
from brevitas_axe.methods.cost.finn_nodes import (
    Estimate,
    FinnCost,
    Hardware,
    estimate,
    thresholding,
)
from brevitas_axe.methods.cost.foldings import choose_folding, choose_foldings, cycles_per_frame
from brevitas_axe.methods.cost.protocol import (
    CostModel,
    Folding,
    Formula,
    LayerShape,
    Widths,
    widths,
)
from brevitas_axe.methods.cost.resources import (
    ResourceRow,
    ResourceTable,
    resource_rows,
    resource_table,
)
from brevitas_axe.methods.cost.shapes import full_plan, layer_shapes
from brevitas_axe.methods.cost.total import total_cost

__all__ = [
    "Breakdown",
    "CostModel",
    "Estimate",
    "FinnCost",
    "Folding",
    "Formula",
    "Hardware",
    "LayerCost",
    "LayerShape",
    "ResourceRow",
    "ResourceTable",
    "Widths",
    "breakdown",
    "choose_folding",
    "choose_foldings",
    "cycles_per_frame",
    "estimate",
    "full_plan",
    "layer_shapes",
    "resource_rows",
    "resource_table",
    "thresholding",
    "total_cost",
    "widths",
]
