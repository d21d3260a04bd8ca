"""Bits of cached keys and values, per block and simulated: class KV of the survey arXiv 2510.16805.

A cache holds what the key and the value projection return. Here each token's vector is rounded to
2^b levels between its least and its largest number, in the forward of the float model, keys before
their rotation by position. No file format carries such bits, so there is nothing to export.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from brevitas_axe.allocate import Quantity, make_problem
from brevitas_axe.allocate.ilp import ilp
from brevitas_axe.blocks.stack import find_blocks
from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.plan import Choices, LayerPrecision
from brevitas_axe.prepare import as_batches
from brevitas_axe.sensitivity import Metric, Scores
from brevitas_axe.sensitivity.facts import Facts
from brevitas_axe.sensitivity.metrics import find_metric, output_tensor

_PROJECTION = re.compile(r"(^|[._])(k|v|key|value)(_proj|_lin)?$")


@dataclass(frozen=True)
class KvCache:
    """The bits of every block's cache under a mean, by an integer program over measured losses.

    The loss of each block at each width is measured alone; of the program's optimum and the widest
    equal bits that fit, the one with the less loss is returned.

    Attributes:
        bits: widths offered to every block.
    """

    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    facts = Facts(
        kind="KV", granularity="layer", signal="measured loss", export="none",
        source="arXiv 2510.16805",
    )  # fmt: skip

    def __call__(
        self,
        model: nn.Module,
        calibration: Iterable[Any],
        mean_bits: float,
        metric: str | Metric = "kl",
        stack: str | None = None,
    ) -> dict[str, int]:
        """Block → bits of its keys and values.

        Args:
            model: a float model with one stack of blocks; left as it is.
            calibration: batches, see `brevitas_axe.prepare.as_batches`.
            mean_bits: most that the blocks' mean may be.
            metric: see `brevitas_axe.sensitivity.score`.
            stack: module name of the stack, where the model has several.

        Raises:
            InvalidOption: the mean is below the fewest bits.
            UnsupportedLayer: a block has no key and value projections of their own.
        """
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
        mixed = {name: self.bits[c] for name, c in zip(blocks, ilp(problem), strict=True)}
        return min(mixed, dict.fromkeys(blocks, max(fitting)), key=loss)


def _loss(model: nn.Module, items: list[Any], metric: Metric):
    """Mean loss of the model with simulated caches, as a function of block → bits."""
    batches = as_batches(items)
    with torch.no_grad():
        real = [output_tensor(model(*args, **kwargs)) for args, kwargs in batches]

    def loss(bits: Mapping[str, int]) -> float:
        with torch.no_grad(), simulated_cache(model, bits):
            outputs = [output_tensor(model(*args, **kwargs)) for args, kwargs in batches]
        triples = zip(outputs, real, items, strict=True)
        values = [float(metric.loss(out, reference, item)) for out, reference, item in triples]
        return float(np.average(values, weights=[len(reference) for reference in real]))

    return loss


@contextmanager
def simulated_cache(model: nn.Module, bits: Mapping[str, int]) -> Iterator[None]:
    """Rounds keys and values inside.

    Args:
        model: of `find_blocks`.
        bits: block name → bits of its cache; blocks left out keep theirs in float.

    Raises:
        UnsupportedLayer: a block has no key and value projections of their own.
    """
    handles = []
    try:
        for name, width in bits.items():
            block = model.get_submodule(name)
            found = [m for key, m in block.named_modules() if _PROJECTION.search(key)]
            if len(found) < 2:
                raise UnsupportedLayer(
                    f"block '{name}' has no key and value projections of their own, so its cache "
                    "cannot be simulated; split a fused projection first."
                )
            handles += [m.register_forward_hook(_rounding(width)) for m in found]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _rounding(bits: int):
    def hook(_: nn.Module, args: tuple, output: Tensor) -> Tensor:
        return rounded(output, bits)

    return hook


def rounded(x: Tensor, bits: int) -> Tensor:
    """Every vector [..., features] on 2^bits levels from its least to its largest number."""
    low, high = x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    step = (high - low) / (2**bits - 1)
    step = torch.where(step > 0, step, torch.ones_like(step))
    return low + ((x - low) / step).round() * step


kv_cache = KvCache()
