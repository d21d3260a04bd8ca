"""What narrow accumulators save: FINN's estimates with the plan's widths and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from brevitas_axe.display import html_table
from brevitas_axe.methods.cost.finn_nodes import HLS, Estimate, Hardware, estimate
from brevitas_axe.methods.cost.protocol import Folding, LayerShape
from brevitas_axe.methods.cost.shapes import full_plan, layer_shapes
from brevitas_axe.methods.cost.total import sides
from brevitas_axe.plan import Plan


@dataclass(frozen=True)
class ResourceRow:
    """One layer at one folding, on the planned accumulator and on the one that its types need.

    Attributes:
        name: of the layer.
        folding: that both estimates share.
        accumulator: P that FINN builds (the outer one, if there are tiles).
        unlimited: P that the same weight and input bits need with no budget.
        planned: estimate on `accumulator` bits.
        unplanned: estimate on `unlimited` bits.
    """

    name: str
    folding: Folding
    accumulator: int
    unlimited: int
    planned: Estimate
    unplanned: Estimate


@dataclass(frozen=True)
class ResourceTable:
    """Rows in the order of the shapes, and their totals."""

    rows: tuple[ResourceRow, ...]

    @property
    def planned(self) -> Estimate:
        return Estimate.total(row.planned for row in self.rows)

    @property
    def unplanned(self) -> Estimate:
        return Estimate.total(row.unplanned for row in self.rows)

    def __repr__(self) -> str:
        count = f"{len(self.rows)} layer{'s' * (len(self.rows) != 1)}"
        luts = f"{self.planned.lut:,} LUT, {self.unplanned.lut:,} without budget"
        return f"ResourceTable({count}: {luts})"

    def _repr_html_(self) -> str:
        sums = [("sum", None, None, self.planned, self.unplanned)] if self.rows else []
        rows = [(r.name, r.accumulator, r.unlimited, r.planned, r.unplanned) for r in self.rows]
        headings = ("layer", "bits", "without budget", "LUT", "without budget", "DSP", "BRAM")
        cells = [
            (name, bits, free, f"{a.lut:,}", f"{b.lut:,}", a.dsp, a.bram, f"{a.cycles:,}")
            for name, bits, free, a, b in [*rows, *sums]
        ]
        return html_table(repr(self), (*headings, "cycles"), cells)


def resource_table(
    plan: Plan,
    shapes: Mapping[str, LayerShape],
    foldings: Mapping[str, Folding] | None = None,
    hardware: Hardware = HLS,
) -> ResourceTable:
    """Estimates of every layer with and without the plan's accumulator widths.

    With the default hardware they hold for MVAU_hls and VVAU_hls; FINN reports 0 LUT for MVAU_rtl
    and VVAU_rtl (`Hardware(style="auto")`).

    Raises:
        InvalidPlan: plan and shapes do not name the same layers, or bits are missing.
        InvalidOption: a folding is missing or does not divide its layer.
        UnsupportedLayer: FINN cannot build a layer.
    """
    rows = []
    for each in sides(plan, shapes, foldings):
        built, unlimited = each.accumulators
        rows.append(
            ResourceRow(
                name=each.shape.name,
                folding=each.folding,
                accumulator=built,
                unlimited=unlimited,
                planned=estimate(each.shape, each.planned, each.folding, hardware),
                unplanned=estimate(each.shape, each.free, each.folding, hardware),
            )
        )
    return ResourceTable(tuple(rows))


def resource_rows(
    model: nn.Module, args: tuple, plan: Plan, exclude: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """LUT of every layer at one multiplication per cycle, as a report's summary holds them.

    Args:
        model: a quantized Brevitas model.
        args: one sample, as positional arguments of the forward.
        plan: its widths.
        exclude: names of layers to leave out.

    Returns:
        By layer: name, accumulator and lut as planned, unlimited_accumulator and unlimited_lut of
        the same data types without a budget. None where a layer has a floating-point format, which
        FINN does not compute with.

    Raises:
        UnsupportedLayer: FINN cannot build a layer.
    """
    if any(isinstance(f, str) for p in plan.layers.values() for f in (p.weight, p.input)):
        return []
    shapes = layer_shapes(model, args, exclude=exclude)
    table = resource_table(full_plan(model, args, exclude=exclude, plan=plan), shapes)
    return [
        {
            "name": row.name,
            "accumulator": row.accumulator,
            "lut": row.planned.lut,
            "unlimited_accumulator": row.unlimited,
            "unlimited_lut": row.unplanned.lut,
        }
        for row in table.rows
    ]
