"""What a whole plan costs."""

from __future__ import annotations

from collections.abc import Mapping

from brevitas_axe.errors import InvalidOption, InvalidPlan
from brevitas_axe.methods.cost.protocol import SERIAL, CostModel, Folding, LayerShape
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
