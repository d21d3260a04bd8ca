"""Transforms that are one formula per tensor: (x − shift) / scale, where it helps."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from brevitas_axe.methods.transforms.fold import apply_change, layer_of
from brevitas_axe.methods.transforms.protocol import EQUALIZING, Change, Formula, Site
from brevitas_axe.methods.transforms.rounding_error import output_error
from brevitas_axe.methods.transforms.sites import (
    agree,
    few_samples,
    find_sites,
    float64_copy,
    float64_outputs,
    reader_weight,
)
from brevitas_axe.model.prepare import Batch
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

# Relative gain that a change must exceed, above what rounding in float64 can produce.
_GAIN = 1e-9


@torch.no_grad()
def apply_formula(
    formula: Formula,
    module: nn.Module,
    calls: Sequence[Batch],
    widths: LayerPrecision,
    exclude: Sequence[str] = (),
) -> tuple[str, ...]:
    """Makes those changes of a formula that lower the rounding error of its readers, in place.

    No change is always a candidate. Each change is made in a float64 copy first, and kept only
    where the output there is the same up to rounding.

    Args:
        formula: function from a site and the widths to a change.
        module, calls, widths: see `Transform`; where no width is known, nothing can be gained.
        exclude: names of layers to leave alone.

    Returns:
        Names of the first reader of every tensor that was changed.

    Raises:
        InvalidOption: a change that cannot be made, see `apply_change`.
        UnsupportedLayer: the module does not run in float64.
    """
    twin, few = float64_copy(module), few_samples(module, calls[0])
    wanted = float64_outputs(twin, few)
    changed = []
    for found in find_sites(module, calls, exclude):
        # A layer may give one tensor and read another: an earlier change may have altered its
        # weights.
        weights = (reader_weight(layer_of(module, name)) for name in found.readers)
        site = replace(found, weights=tuple(weights))
        change = formula(site, widths)
        if change is None:
            continue
        before = output_error(site, Change(), widths)
        if not output_error(site, change, widths) < before * (1 - _GAIN):
            continue
        trial = copy.deepcopy(twin)
        apply_change(trial, site, change)
        if agree(float64_outputs(trial, few), wanted):
            apply_change(module, site, change)
            twin = trial
            changed.append(site.readers[0])
    return tuple(changed)


class PerTensor:
    """A method that is one formula per tensor, which its subclasses, frozen dataclasses, have.

    Attributes:
        exclude: names of layers to leave alone.
    """

    exclude: tuple[str, ...]

    def change(self, site: Site, widths: LayerPrecision) -> Change | None:
        """The change of one tensor; None where none is better."""
        raise NotImplementedError

    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]:
        """See `Transform`."""
        apply_formula(self.change, module, calls, widths, self.exclude)
        return ()


@dataclass(frozen=True)
class Affine(PerTensor):
    """A formula without options as a method.

    Attributes:
        function: the formula.
        facts: for the catalogue.
        exclude: names of layers to leave alone.
        stage: see `Transform`.
    """

    function: Formula
    facts: Facts
    exclude: tuple[str, ...] = ()
    stage: int = EQUALIZING

    def change(self, site: Site, widths: LayerPrecision) -> Change | None:
        """The formula's."""
        return self.function(site, widths)
