"""What rewrites a float model before its quantizers are placed, and leaves its function as it is.

To write your own: where it is one formula per tensor, write the function from a `Site` to a
`Change` and wrap it in `Affine` (affine.py), or call `apply_formula` from a dataclass that has
options; otherwise write a frozen dataclass that is a `Transform`. Either way, an object of the
file's name is the method, and tests/contracts/test_transforms.py runs over every one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

# Places in the order of a recipe. What is folded into norms comes before rotations, which mix the
# channels; what assumes a constant token, and noise, come last.
LINEARS, EQUALIZING, ROTATING, CONSTANT_TOKEN, NOISY = range(5)


class Transform(Protocol):
    """Rewrites a float module (a copy of a model, or of one block) in place.

    Attributes:
        facts: for the catalogue.
        stage: place in the order of a recipe, one of those above; a lower one comes first.
        exclude: names of layers whose inputs and weights stay as they are.

    Args:
        module: is rewritten. Its other parameters stay the same, to the last bit.
        calls: arguments of its forward, batch by batch.
        widths: what the layers will be quantized to, as far as it is known.

    Returns:
        What must be true of the data for the function to be the same, one sentence for each
        assumption; usually ().
    """

    @property
    def facts(self) -> Facts: ...

    @property
    def stage(self) -> int: ...

    @property
    def exclude(self) -> tuple[str, ...]: ...

    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]: ...


@dataclass(frozen=True, eq=False)
class Site:
    """One tensor that linear layers or convolutions read; `sites.find_sites` finds them all.

    Attributes:
        readers: names of all linear layers and convolutions that read the tensor.
        giver: name of the module that gives it and can take a factor per channel: a norm, a linear
            layer or a convolution; None where there is none, or something else reads it too.
        shifts: the giver can take a shift per channel as well.
        through_softmax: between giver and readers, rows are averaged with weights that sum to 1.
        padded: a reader pads the tensor with zeros, so that a shift cannot be undone in its bias.
        low, high: [C], smallest and largest number of each channel over the calibration data.
        sample: [n, C], vectors on which a change is judged.
        weights: of every reader, [rows, taps, C]; a linear layer has one tap, a convolution one for
            each position of its kernel.
    """

    readers: tuple[str, ...]
    giver: str | None
    shifts: bool
    through_softmax: bool
    padded: bool
    low: Tensor
    high: Tensor
    sample: Tensor
    weights: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Change:
    """x' = (x − shift) / scale in front of the readers; they take W·diag(scale) and c + W·shift.

    Attributes:
        scale: [C], not zero and finite, or None for 1.
        shift: [C], finite, or None for 0.
    """

    scale: Tensor | None = None
    shift: Tensor | None = None


# None leaves the site as it is.
Formula = Callable[[Site, LayerPrecision], Change | None]
