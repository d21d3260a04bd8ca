"""Branches of one layer, which are solved together when the first of them is to be solved."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from brevitas_axe.model.branches import BranchedLinear, branch_names, branched_layers
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.running import dequantized


@dataclass(frozen=True, eq=False)
class Branches:
    """Branches that are solved together; their inputs, side by side, are those of one layer.

    Attributes:
        name: of the layer that they are branches of.
        whole: that layer.
        layers: the branches by layer name, in the order in which they run.
    """

    name: str
    whole: BranchedLinear
    layers: Mapping[str, Layer]

    @property
    def columns(self) -> list[int]:
        """Inputs of every branch."""
        return [layer.in_features for layer in self.layers.values()]

    def inputs(self, layer_input: Tensor) -> Iterator[tuple[Layer, Tensor]]:
        """Each branch with its columns of the whole layer's input."""
        for name, layer in self.layers.items():
            branch = name.rpartition(".")[2]
            yield layer, self.whole.inputs_of(branch, dequantized(layer_input))


def branches_of(model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, Branches]:
    """Layer → the branches that it is solved with; layers that are solved alone are left out.

    Args:
        model: contains the layers.
        layers: the layers to solve; a branch that is not among them is left as it is.
    """
    found = {}
    for name, whole in branched_layers(model).items():
        names = [branch for branch in branch_names(name, whole) if branch in layers]
        scaled = any(whole.scale_of(branch) is not None for branch in whole.branches)
        # Branches that give different outputs have no errors of each other to correct.
        if (len(names) > 1 or (names and scaled)) and whole.adds:
            group = Branches(name, whole, {branch: layers[branch] for branch in names})
            found.update(dict.fromkeys(names, group))
    return found
