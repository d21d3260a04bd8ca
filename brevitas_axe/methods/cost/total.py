"""What a whole plan costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.cost.protocol import SERIAL, CostModel, Folding, LayerShape, widths
from brevitas_axe.plan import LayerPrecision, Plan


def precisions(plan: Plan, shapes: Mapping[str, LayerShape]) -> dict[str, LayerPrecision]:
    """The plan's precision of every layer that has a shape, in the shapes' order.

    Raises:
        InvalidPlan: a layer is in one and not in the other.
    """
    plan.check_names(shapes)
    missing = [name for name in shapes if name not in plan.layers]
    if missing:
        raise InvalidPlan(
            f"the plan has no precision for {', '.join(missing)}, and the cost counts every "
            "layer; add them or leave out their shapes."
        )
    return {name: plan[name] for name in shapes}


def folding_of(name: str, foldings: Mapping[str, Folding] | None) -> Folding:
    """A layer's folding; everything is serial where no foldings are given.

    Raises:
        InvalidOption: foldings are given, but not this layer's.
    """
    if foldings is None:
        return SERIAL
    if name not in foldings:
        raise InvalidOption(f"layer '{name}' has no folding; give every layer one, or none.")
    return foldings[name]


class Sides(NamedTuple):
    """A layer as planned, and with the same data types but no accumulator budget.

    Attributes:
        shape, folding: of both.
        planned, free: the precisions.
    """

    shape: LayerShape
    folding: Folding
    planned: LayerPrecision
    free: LayerPrecision

    @property
    def accumulators(self) -> tuple[int, int]:
        """P that is built, planned and free; the outer one where there are tiles."""
        return widths(self.shape, self.planned).outer, widths(self.shape, self.free).outer


def sides(
    plan: Plan,
    shapes: Mapping[str, LayerShape],
    foldings: Mapping[str, Folding] | None = None,
) -> Iterator[Sides]:
    """Every layer with and without its budget.

    Raises:
        InvalidPlan: plan and shapes do not name the same layers.
        InvalidOption: foldings are given, but not a layer's.
    """
    for name, precision in precisions(plan, shapes).items():
        free = replace(precision, accumulator=None, tile=None)
        yield Sides(shapes[name], folding_of(name, foldings), precision, free)


def total_cost(
    model: CostModel,
    plan: Plan,
    shapes: Mapping[str, LayerShape],
    foldings: Mapping[str, Folding] | None = None,
) -> float:
    """Sum of a cost over the layers of a plan.

    Of `finn_cycles` the sum is the time of one frame that is alone in the pipeline. The pace of
    frame after frame is set by the slowest layer: see `choose_foldings` and `Estimate.total`.

    Raises:
        InvalidPlan: plan and shapes do not name the same layers, or bits are missing.
        InvalidOption: a folding is missing or does not divide its layer.
    """
    return sum(
        model(shapes[name], precision, folding_of(name, foldings))
        for name, precision in precisions(plan, shapes).items()
    )
