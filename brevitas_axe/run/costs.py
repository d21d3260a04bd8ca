"""What a quantized model costs for one sample."""

from __future__ import annotations

from collections.abc import Sequence

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.methods.cost import Breakdown, breakdown, full_plan, layer_shapes
from brevitas_axe.model.prepare import one_sample
from brevitas_axe.run.saving.save import Result, left_out


def costs_of(
    result: Result, names: Sequence[str], lenient: bool = False
) -> tuple[dict[str, Breakdown], list[str]]:
    """What a model costs for one sample, by the cost's name.

    Args:
        result: with its example.
        names: of methods of the room cost, with options.
        lenient: a cost that cannot be told of this model is left out, and said why.

    Returns:
        The costs, and one sentence for each that is left out.

    Raises:
        UnsupportedLayer: as `breakdown`, unless `lenient`.
    """
    assert result.example is not None
    args, kwargs = one_sample(result.example)
    exclude = left_out(result)
    shapes = layer_shapes(result.model, args, kwargs, exclude)
    plan = full_plan(result.model, args, kwargs, exclude, result.plan)
    found, refusals = {}, []
    for name in names:
        try:
            found[name] = breakdown(name, plan, shapes)
        except UnsupportedLayer as error:
            if not lenient:
                raise
            refusals.append(f"{name} is left out: {error}")
    return found, refusals
