"""A linear layer as several branches, each an ordinary linear layer with a name of its own.

A quantizer has one width, so different widths inside one layer are different layers: `fc1` becomes
`fc1.rest` and `fc1.outliers`. Plans, costs, certificates and files then need no notion of branches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.plan import LayerPrecision, Plan


@dataclass(frozen=True, eq=False)
class Part:
    """One branch of a `BranchedLinear`.

    Attributes:
        linear: the layer.
        columns: int64 [k], the inputs that it takes, in its own order.
        rows: int64 [r], the outputs that it gives; None for all of them.
        precision: its planned widths.
        scale: start scale of its weight quantizer, from which its solver searches: [rows], or
            [rows, tiles], which counts where every tile has a scale of its own; None to let the
            quantizer compute it from the weights.
    """

    linear: nn.Linear
    columns: Tensor
    rows: Tensor | None = None
    precision: LayerPrecision = field(default_factory=LayerPrecision)
    scale: Tensor | None = None


class BranchedLinear(nn.Module):
    """Runs its branches on their inputs; adds their outputs, or joins them where they have rows.

    Quantize it layer by layer, so that each branch has an input quantizer
    (`brevitas_axe.quantize_blocks`, or Brevitas's own `layerwise_quantize`): one quantizer in front
    of all of them would see the inputs of all.

    Args:
        inputs, outputs: features of the layer that the branches replace.
        parts: the branches by name, in the order in which they run.

    Attributes:
        inputs, outputs: as given.
        branches: names of the branches.
        precisions: planned widths of each branch.

    Raises:
        InvalidOption: no branch, one without inputs, inputs or outputs that do not exist, some
            branches with rows and some without, or rows that are not each given once.
    """

    def __init__(self, inputs: int, outputs: int, parts: Mapping[str, Part]) -> None:
        super().__init__()
        _check(inputs, outputs, parts)
        self.inputs, self.outputs = inputs, outputs
        self.branches = tuple(parts)
        self.adds = all(part.rows is None for part in parts.values())
        self.precisions = {name: part.precision for name, part in parts.items()}
        for name, part in parts.items():
            self.add_module(name, part.linear)
            self.register_buffer(f"{name}_columns", part.columns)
            self.register_buffer(f"{name}_scale", part.scale, persistent=False)
        if not self.adds:
            rows = torch.cat([part.rows for part in parts.values() if part.rows is not None])
            self.register_buffer("place", rows.argsort())

    def inputs_of(self, name: str, input: Tensor) -> Tensor:
        """[..., inputs] to [..., k]: the columns of one branch."""
        return input.index_select(-1, self.get_buffer(f"{name}_columns"))

    def scale_of(self, name: str) -> Tensor | None:
        """Start scale of one branch, or None."""
        return dict(self.named_buffers()).get(f"{name}_scale")

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] to [..., outputs]; the argument's name is that of nn.Linear."""
        given = [self.get_submodule(n)(self.inputs_of(n, input)) for n in self.branches]
        if self.adds:
            total = given[0]
            for more in given[1:]:
                total = total + more
            return total
        return torch.cat(given, -1).index_select(-1, self.get_buffer("place"))


def _check(inputs: int, outputs: int, parts: Mapping[str, Part]) -> None:
    if not parts:
        raise InvalidOption("a layer needs at least one branch.")
    for name, part in parts.items():
        columns = part.columns
        inside = len(columns) and bool(((columns >= 0) & (columns < inputs)).all())
        if not inside or len(columns.unique()) < len(columns):
            raise InvalidOption(
                f"the columns of branch '{name}' must be some of the {inputs} input channels, each "
                "of them once."
            )
    given = [part.rows for part in parts.values() if part.rows is not None]
    if given and (
        len(given) < len(parts) or torch.cat(given).sort().values.tolist() != list(range(outputs))
    ):
        raise InvalidOption(
            f"where branches have rows, all of them must, and give each of the {outputs} outputs "
            "once."
        )


def branched_layers(model: nn.Module) -> dict[str, BranchedLinear]:
    """All layers that consist of branches, by module name."""
    return {n: m for n, m in model.named_modules() if isinstance(m, BranchedLinear)}


def branch_names(name: str, layer: BranchedLinear) -> tuple[str, ...]:
    """Layer names of the branches of the layer of this name."""
    return tuple(f"{name}.{branch}" if name else branch for branch in layer.branches)


def branch_plan(model: nn.Module, plan: Plan) -> Plan:
    """The plan with every split layer replaced by its branches and their planned widths."""
    split = branched_layers(model)
    layers: dict[str, LayerPrecision] = {}
    for name, precision in plan.layers.items():
        if name in split:
            names = branch_names(name, split[name])
            layers.update(zip(names, split[name].precisions.values(), strict=True))
        else:
            layers[name] = precision
    return Plan(layers)
