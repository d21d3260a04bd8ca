"""A plan's cost layer by layer, and what the same data types cost without an accumulator budget."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from brevitas_axe.display import html_table, one_line
from brevitas_axe.methods.cost.protocol import Folding, LayerShape
from brevitas_axe.methods.cost.total import sides
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.registry import method


@dataclass(frozen=True)
class LayerCost:
    """One layer on its planned accumulator, and on the one that its data types need.

    Attributes:
        layer: its name.
        precision: as planned.
        accumulator: P that is built, the outer one where there are tiles.
        cost: as planned.
        unlimited_accumulator: P that the same weights and inputs need with no budget.
        unlimited: cost with it.
    """

    layer: str
    precision: LayerPrecision
    accumulator: int
    cost: float
    unlimited_accumulator: int
    unlimited: float


@dataclass(frozen=True)
class Breakdown:
    """Layers in the order of execution, and their sums.

    Attributes:
        unit: of all costs.
        layers: one entry per layer.
    """

    unit: str
    layers: tuple[LayerCost, ...]

    @property
    def total(self) -> float:
        return sum(row.cost for row in self.layers)

    @property
    def unlimited_total(self) -> float:
        return sum(row.unlimited for row in self.layers)

    def __repr__(self) -> str:
        count = f"{len(self.layers)} layer{'s' * (len(self.layers) != 1)}"
        costs = f"{self.total:,.6g}, {self.unlimited_total:,.6g} without budget"
        return f"Breakdown({count}: {costs}, in {one_line(self.unit)})"

    def _repr_html_(self) -> str:
        rows = [
            (r.layer, r.precision.weight, r.precision.input, r.accumulator, f"{r.cost:,.6g}",
             r.unlimited_accumulator, f"{r.unlimited:,.6g}")
            for r in self.layers
        ]  # fmt: skip
        free = ("without budget", "cost without budget")
        return html_table(
            repr(self), ("layer", "weight", "input", "accumulator", "cost", *free), rows
        )

    def without(self, names: Collection[str]) -> Breakdown:
        """The other layers, and their sums."""
        return replace(self, layers=tuple(r for r in self.layers if r.layer not in names))

    def to_dict(self) -> dict[str, Any]:
        totals = {"total": self.total, "unlimited_total": self.unlimited_total}
        return {"unit": self.unit, **totals, "layers": [asdict(row) for row in self.layers]}


def breakdown(
    cost: Any,
    plan: Plan,
    shapes: Mapping[str, LayerShape],
    foldings: Mapping[str, Folding] | None = None,
) -> Breakdown:
    """The cost of every layer of a plan.

    Args:
        cost: a method of this room, with options as "NAME:key=value".
        plan: names every layer of `shapes`, with all bits.
        shapes: see `layer_shapes`.
        foldings: by layer; None for one multiplication at a time.

    Raises:
        InvalidPlan: plan and shapes do not name the same layers, or bits are missing.
        InvalidOption: no such cost, or a folding is missing or does not divide its layer.
        UnsupportedLayer: the hardware that the cost is of cannot build a layer.
    """
    price = method("cost", cost)
    rows = []
    for each in sides(plan, shapes, foldings):
        built, unlimited = each.accumulators
        rows.append(
            LayerCost(
                layer=each.shape.name,
                precision=each.planned,
                accumulator=built,
                cost=price(each.shape, each.planned, each.folding),
                unlimited_accumulator=unlimited,
                unlimited=price(each.shape, each.free, each.folding),
            )
        )
    return Breakdown(price.unit, tuple(rows))
