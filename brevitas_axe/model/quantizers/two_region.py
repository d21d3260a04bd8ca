"""Inputs in two regions of one grid: fine steps around zero, coarser ones above (OPT-m).

A GELU's outputs are many small numbers and few large ones. Both regions are ordinary quantizers,
and the step of the second is 2^m times that of the first, so that their sum is an integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjector
from brevitas.quant import Int8ActPerTensorFloat
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.sampling import sampled

# Widths for which regions are chosen; others have one region.
FEWEST_BITS, MOST_BITS = 3, 8
# Numbers of a sample, and shares of the largest magnitude that are tried as the end of the grid.
SAMPLE, LEAST_SHARE, SHARES = 2**14, 0.15, 18
ONE_REGION = -1


@dataclass(frozen=True)
class Region:
    """An ordinary quantizer of x − offset.

    Attributes:
        scale: its step.
        bit_width: its bits.
        signed: two's complement, or unsigned.
        offset: what is subtracted in front of it.
    """

    scale: float
    bit_width: int
    signed: bool
    offset: float = 0.0

    @property
    def ends(self) -> tuple[int, int]:
        """Smallest and largest integer."""
        half = 2 ** (self.bit_width - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)


def regions(step: float, bits: int, exponent: int) -> tuple[Region, ...]:
    """One signed region of all bits, or two of one bit less.

    Args:
        step: of the first, and of the sum.
        bits: b, of the code.
        exponent: m; -1 for one region.
    """
    if exponent == ONE_REGION:
        return (Region(step, bits, True),)
    first = Region(step, bits - 1, True)
    return first, Region(step * 2**exponent, bits - 1, False, step * first.ends[1])


def integer_range(bits: int, exponent: int) -> tuple[int, int]:
    """Smallest and largest integer of the sum, in units of the first region's step."""
    ends = [
        tuple(int(part.scale) * end for end in part.ends) for part in regions(1.0, bits, exponent)
    ]
    return sum(low for low, _ in ends), sum(high for _, high in ends)


def quantized(x: Tensor, step: Tensor, bits: int, exponent: int) -> Tensor:
    """Integers of the sum of regions, in units of the step; gradients pass the rounding."""
    first, *more = (part.ends for part in regions(1.0, bits, exponent))
    scaled = x / step
    integers = scaled.round().clamp(*first)
    if more:
        coarse = 2**exponent
        integers = integers + coarse * ((scaled - first[1]) / coarse).round().clamp(*more[0])
    inside = scaled.clamp(*integer_range(bits, exponent))
    return inside + (integers - inside).detach() if x.requires_grad else integers


class TwoRegionQuant(nn.Module):
    """Finds step and exponent for every width from the numbers seen in calibration.

    Args:
        bit_width_impl: of Brevitas, gives the bits of the code.
        largest_exponent: m is 0 to this, and one region of equal steps is a candidate too.

    Attributes:
        observer_only: set by Brevitas's calibration; numbers are then noted and passed on.
        steps: per width from FEWEST_BITS to MOST_BITS.
        exponents: likewise.
    """

    steps: Tensor
    exponents: Tensor

    def __init__(self, bit_width_impl: nn.Module, largest_exponent: int) -> None:
        super().__init__()
        self.msb_clamp_bit_width_impl = bit_width_impl
        self.largest_exponent = largest_exponent
        self.observer_only = False
        self._seen: list[Tensor] = []
        self._importance: Tensor | None = None
        widths = MOST_BITS - 1  # one region of 2 bits, too
        self.register_buffer("steps", torch.ones(widths))
        self.register_buffer("exponents", torch.full((widths,), ONE_REGION))

    def weigh(self, importance: Tensor | None) -> None:
        """Sets what errors of each channel of the last axis count, [C]; None for all alike."""
        self._importance = importance

    def chosen(self) -> tuple[Tensor, int, int]:
        """(step, bits, exponent) at the present bits."""
        self._fit()
        bits = int(self.msb_clamp_bit_width_impl())
        if not 2 <= bits <= MOST_BITS:
            raise InvalidOption(f"two_region takes inputs of 2 to {MOST_BITS} bits, not {bits}.")
        return self.steps[bits - 2], bits, int(self.exponents[bits - 2])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Values, step, zero point and bits that hold all integers."""
        zero = torch.zeros((), device=x.device)
        if self.observer_only:
            self._note(x.detach())
            return x, zero + 1, zero, zero + MOST_BITS
        step, bits, exponent = self.chosen()
        low, high = integer_range(bits, exponent)
        covering = max((-low - 1).bit_length(), high.bit_length()) + 1
        return quantized(x, step, bits, exponent) * step, step.clone(), zero, zero + covering

    def _load_from_state_dict(self, state: dict, prefix: str, *others: Any) -> None:
        super()._load_from_state_dict(state, prefix, *others)
        missing = others[2]
        if bool((self.steps == 1).all()):  # not calibrated yet: weights of a float layer come in
            mine = (f"{prefix}steps", f"{prefix}exponents")
            missing[:] = [key for key in missing if key not in mine]

    def _note(self, x: Tensor) -> None:
        vectors = x.reshape(-1, x.shape[-1]) if x.dim() else x.reshape(1, 1)
        self._seen.append(sampled(vectors, vectors.numel() // SAMPLE))

    @torch.no_grad()
    def _fit(self) -> None:
        if not self._seen:
            return
        alike = len({part.shape[1] for part in self._seen}) == 1
        x = torch.cat(self._seen if alike else [part.reshape(-1, 1) for part in self._seen])
        self._seen = []
        weighted = self._importance is not None and len(self._importance) == x.shape[1]
        importance = self._importance if weighted else x.new_ones(x.shape[1])
        x = sampled(x, x.numel() // SAMPLE)
        for index in range(len(self.steps)):
            step, exponent = fitted(x, importance, index + 2, self.largest_exponent)
            self.steps[index], self.exponents[index] = step, exponent


def fitted(
    x: Tensor, importance: Tensor | None, bits: int, largest_exponent: int
) -> tuple[Tensor, int]:
    """Step and exponent of the least squared error; one region where none is better."""
    largest = x.abs().max().clamp(min=torch.finfo(x.dtype).tiny * 2**MOST_BITS)
    exponents = [ONE_REGION]
    if bits >= FEWEST_BITS:
        exponents += range(largest_exponent + 1)
    best, least = (largest, ONE_REGION), float("inf")
    for exponent in exponents:
        low, high = integer_range(bits, exponent)
        for share in torch.linspace(1, LEAST_SHARE, SHARES).tolist():
            step = largest * share / (high if exponent != ONE_REGION else -low)
            wrong = quantized(x, step, bits, exponent) * step - x
            error = float((wrong.square() * importance).sum())
            if error < least:
                best, least = (step, exponent), error
    return best


class TwoRegionActQuantProxy(ActQuantProxyFromInjector):
    """Brevitas's proxy, which also tells the certificate, the budget and export what it adds up."""

    @property
    def _quant(self) -> TwoRegionQuant:
        fused: Any = self.fused_activation_quant_proxy
        return fused.tensor_quant

    @property
    def regions(self) -> Sequence[Region]:
        """The quantizers whose sum the output is."""
        step, bits, exponent = self._quant.chosen()
        return regions(float(step), bits, exponent)

    @property
    def integer_range(self) -> InputRange:
        """Integers of the output, in units of its step."""
        _, bits, exponent = self._quant.chosen()
        return InputRange(*integer_range(bits, exponent))

    def forward(self, x: Any) -> Any:
        """Quantized x. The error of a channel counts as its weights spread it over the outputs."""
        if self.is_quant_enabled:
            layer: Any = self.tracked_module_list[0]
            weight = getattr(layer, "weight", None)
            if isinstance(layer, nn.Linear) and weight is not None:
                self._quant.weigh(weight.detach().square().sum(0))
        return super().forward(x)


class Int8TwoRegionActPerTensorFloat(Int8ActPerTensorFloat):
    """8-bit code of signed activations in two regions, one float scale per tensor."""

    proxy_class = TwoRegionActQuantProxy
    tensor_quant = cast(Any, TwoRegionQuant)
    largest_exponent = 4
