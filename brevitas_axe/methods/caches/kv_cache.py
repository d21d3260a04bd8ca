"""Bits of cached keys and values, per block and simulated: class KV of the survey arXiv 2510.16805.

A cache stores what the key and the value projection return. Here each token's vector is rounded to
2^b levels between its least and its largest number, in the forward of the float model, keys before
their rotation by position. No file format carries such bits, so there is nothing to export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.methods.allocate import Quantity, make_problem
from brevitas_axe.methods.sensitivity import Metric, Scores
from brevitas_axe.methods.sensitivity.metrics import find_metric, outputs
from brevitas_axe.model.prepare import as_batches
from brevitas_axe.model.running import hooked
from brevitas_axe.model.stack import find_blocks
from brevitas_axe.plan import Choices, LayerPrecision
from brevitas_axe.registry import Facts, method

_PROJECTION = re.compile(r"(?:^|[._])(k|v|key|value)(?:_proj|_lin)?$")


@dataclass(frozen=True)
class KvCache:
    """Bits of every block's cache within a given mean, by an allocator over measured losses.

    The loss of each block at each width is measured alone. The allocator's result is compared with
    the widest equal bits that fit, and the one with the smaller measured loss is returned.

    Attributes:
        bits: widths offered to every block.
        allocator: registered allocator, with options or without.

    Raises:
        InvalidOption: no width is offered, one of them twice, or one that is no integer from 1 on.
    """

    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    allocator: str = "ilp"
    facts = Facts(
        kind="KV", granularity="layer", signal="measured loss", export="none",
        source="arXiv 2510.16805",
    )  # fmt: skip

    def __post_init__(self) -> None:
        if not self.bits or len(set(self.bits)) < len(self.bits):
            raise InvalidOption("a cache needs at least one width to choose from, none twice.")
        for bits in self.bits:
            _check(bits)

    def __call__(
        self,
        model: nn.Module,
        calibration: Iterable[Any],
        mean_bits: float,
        metric: str | Metric = "kl",
        stack: str | None = None,
    ) -> dict[str, int]:
        """See `brevitas_axe.methods.caches.protocol.CacheBits`."""
        fitting = [b for b in self.bits if b <= mean_bits]
        if not fitting:
            raise InvalidOption(
                f"a mean of {mean_bits:g} bits is below the fewest, {min(self.bits)}; raise it or "
                "offer fewer bits."
            )
        items = list(calibration)
        blocks = list(find_blocks(model, stack))
        loss = _loss(model, items, find_metric(metric))
        choices = Choices(dict.fromkeys(blocks, tuple(LayerPrecision(input=b) for b in self.bits)))
        harm = {name: np.array([loss({name: b}) for b in self.bits]) for name in blocks}
        width = Quantity(tuple(np.array(self.bits, dtype=float) for _ in blocks))
        limits = {"bits": mean_bits * len(blocks)}
        problem = make_problem(Scores(choices, harm), {"bits": width}, limits)
        found = method("allocate", self.allocator)(problem)
        mixed = {name: self.bits[c] for name, c in zip(blocks, found, strict=True)}
        return min(mixed, dict.fromkeys(blocks, max(fitting)), key=loss)


def _loss(model: nn.Module, items: list[Any], metric: Metric):
    """Mean loss of the model with simulated caches, as a function of block → bits."""
    batches = as_batches(items)

    def outputs_of(bits: Mapping[str, int]) -> list[Tensor]:
        with simulated_cache(model, bits):
            return outputs(model, batches)

    real = outputs_of({})

    return lambda bits: metric.mean(outputs_of(bits), real, items)


@contextmanager
def simulated_cache(model: nn.Module, bits: Mapping[str, int]) -> Iterator[None]:
    """Context in which keys and values are rounded.

    Args:
        model: of `find_blocks`.
        bits: block name → bits of its cache; blocks left out keep theirs in float.

    Raises:
        InvalidOption: there is no block of that name, or bits are no integer from 1 on.
        UnsupportedLayer: a block has no key and value projections of their own.
    """
    modules = dict(model.named_modules())
    with ExitStack() as stack:
        for name, width in bits.items():
            _check(width)
            if name not in modules:
                raise InvalidOption(
                    f"the model has no block '{name}'; `find_blocks` lists those there are."
                )
            matches = ((_PROJECTION.search(key), m) for key, m in modules[name].named_modules())
            found = [(match[1][0], m) for match, m in matches if match is not None]
            if {letter for letter, _ in found} != {"k", "v"}:
                raise UnsupportedLayer(
                    f"block '{name}' has no key and value projections of their own, so its cache "
                    "cannot be simulated; split a fused projection first."
                )
            projections = {str(index): m for index, (_, m) in enumerate(found)}
            stack.enter_context(hooked(projections, after=_rounding(width)))
        yield


def _check(bits: object) -> None:
    if type(bits) is not int or bits < 1:
        raise InvalidOption(f"bits of a cache must be an integer of at least 1, not {bits!r}.")


def _rounding(bits: int):
    def hook(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
        return rounded(output, bits)

    return hook


def rounded(x: Tensor, bits: int) -> Tensor:
    """Every vector [..., features] on 2^bits levels from its least to its largest number."""
    # In half precision the distance from least to largest may exceed the type's range.
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    low, high = wide.amin(-1, keepdim=True), wide.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return (low + ((wide - low) / step).round() * step).to(x.dtype)


kv_cache = KvCache()
