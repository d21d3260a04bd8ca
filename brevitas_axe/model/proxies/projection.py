"""Projection of integer rows on an accumulator budget: exact integers, in place.

Whole numbers are kept in floating point, which is fast, but only in types in which all of their
sums are exact; nothing that decides what fits is ever rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from brevitas_axe.accumulator import InputRange, accumulator_limit
from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.proxies.kernels import project_tiles, subtract_mean_tiles

# On other devices than the CPU the number of steps is fixed, so that nothing waits for the device:
# the squared error is then less than 1 ‰ above the smallest one.
_STEPS = 8


@dataclass(frozen=True)
class Budget:
    """The accumulator budget of every tile of a layer.

    With S⁺ and S⁻ the sums of its positive and of its |negative| weights, h and l the magnitudes
    of the largest and the smallest input, the largest magnitude of any partial sum is
    max(S⁺h + S⁻l, S⁺l + S⁻h); twice that is (S⁺ + S⁻)(h + l) + |S⁺ − S⁻||h − l|, the *cost*.

    Attributes:
        input_range: integers of the inputs.
        accumulator_bit_width: P.
        tile_size: inputs per tile, None for whole rows.
    """

    input_range: InputRange
    accumulator_bit_width: int
    tile_size: int | None

    @property
    def bound(self) -> int:
        """Largest cost that fits."""
        return 2 * accumulator_limit(self.accumulator_bit_width)

    @property
    def norm_cost(self) -> int:
        """Coefficient of the l1 norm S⁺ + S⁻ in the cost: high − low."""
        return self.input_range.high - self.input_range.low

    @property
    def imbalance_cost(self) -> int:
        """Coefficient of the imbalance |S⁺ − S⁻| in the cost: |high + low|."""
        return abs(self.input_range.high + self.input_range.low)

    @property
    def one_sided(self) -> bool:
        """True where inputs have one sign, so that positive and negative weights never add up."""
        return self.norm_cost == self.imbalance_cost

    def tile_size_in(self, columns: int) -> int:
        """Inputs per tile of a row with so many of them."""
        return columns if self.tile_size is None else min(self.tile_size, columns)


def project(integers: Tensor, values: Tensor, budget: Budget, largest: int) -> Tensor | None:
    """Replaces every tile that does not fit by the nearest integers that do, in place.

    Of all integers whose magnitudes have a bounded sum, those nearest to v are
    sign(v)·round(max(|v| − λ, 0)) for the smallest λ ≥ 0 that fits. λ is bracketed by false
    position; units on which the ends of the bracket differ are added back, first weights first,
    as long as they fit. For unsigned inputs positive and negative weights have budgets of
    their own, hence each its own λ (AXE, arXiv 2409.17092, Eq. 15-17; A2Q+ for the one-sided
    form); otherwise they share one. No weight grows or changes its sign.

    Args:
        integers: whole numbers [rows, K], contiguous float32 or float64; updated.
        values: what they were rounded from, alike.
        budget: of each tile.
        largest: bound on the integers' magnitudes.

    Returns:
        Booleans [rows, tiles], True for tiles that did not fit; None when no tile ever could.

    Raises:
        UnsupportedLayer: worst-case sums beyond 64 bits.
    """
    rows, columns = integers.shape
    tile_size = budget.tile_size_in(columns)
    farthest = budget.norm_cost + budget.imbalance_cost
    if tile_size * largest * farthest <= budget.bound:
        return None
    _check_exact(integers.dtype, tile_size * largest, tile_size * largest * farthest)
    if integers.device.type == "cpu":
        over = torch.empty(rows, -(-columns // tile_size), dtype=torch.bool)
        costs = budget.one_sided, budget.norm_cost, budget.imbalance_cost, budget.bound
        project_tiles(integers.numpy(), values.numpy(), tile_size, *costs, over.numpy())
        return over
    tiles = tiled(integers, tile_size)
    over = exceeds(tiles, budget)
    if over.any():
        tiles = tiles.clone()
        tiles[over] = projected_tiles(tiles[over], tiled(values, tile_size)[over], budget)
        integers.copy_(tiles.flatten(1)[:, :columns])
    return over


def tiled(rows: Tensor, tile_size: int) -> Tensor:
    """[rows, K] → [rows, tiles, T], the short last tile filled with zeros (they add nothing)."""
    return F.pad(rows, (0, -rows.shape[1] % tile_size)).unflatten(1, (-1, tile_size))


def exceeds(tiles: Tensor, budget: Budget) -> Tensor:
    """True for each tile of whole numbers [..., T] that the budget does not admit."""
    return _cost(tiles.abs().sum(-1), tiles.sum(-1), budget) > budget.bound


def _cost(absolute: Tensor, signed: Tensor, budget: Budget) -> Tensor:
    absolute, signed = absolute.to(torch.int64), signed.to(torch.int64)
    return absolute * budget.norm_cost + signed.abs() * budget.imbalance_cost


def projected_tiles(integers: Tensor, values: Tensor, budget: Budget) -> Tensor:
    """`project` as tensor operations, for any device.

    Args:
        integers: tiles of whole numbers [tiles, T].
        values: what they were rounded from.
        budget: of each tile.
    """
    signs = integers.sign()
    # A size never rounds to more than its integer.
    sizes = torch.minimum((values * signs).relu_(), integers.abs() + 0.499)
    if budget.one_sided:
        sizes = torch.stack((sizes * (signs > 0), sizes * (signs < 0)))
    unit = budget.norm_cost + budget.imbalance_cost
    target = math.log(budget.bound + unit / 2)

    def shrunk(by: Tensor) -> Tensor:
        return (sizes - by).add_(0.5).floor_().relu_()

    def cost(counts: Tensor) -> Tensor:
        total = counts.sum(-1, keepdim=True)
        signed = total if budget.one_sided else (counts * signs).sum(-1, keepdim=True)
        return _cost(total, signed, budget)

    def height(cost: Tensor) -> Tensor:
        """A function of the cost that falls almost linearly with λ, to 0 at the budget."""
        return ((cost + unit / 2).log() - target).to(sizes.dtype)

    low, high = sizes.new_zeros(*sizes.shape[:-1], 1), sizes.amax(-1, keepdim=True)
    start = cost(shrunk(low))
    above, below = height(start), height(torch.zeros_like(start))
    stayed = torch.full_like(low, torch.nan)
    for _ in range(_STEPS):
        middle = torch.lerp(low, high, (above / (above - below)).clamp_(0.05, 0.95))
        found = cost(shrunk(middle))
        fits = found <= budget.bound
        found = height(found)
        # Illinois rule: the value of an end that stays twice is halved, or it might never move.
        above = torch.where(fits, torch.where(stayed == 1, above / 2, above), found)
        below = torch.where(fits, found, torch.where(stayed == 0, below / 2, below))
        low, high = torch.where(fits, low, middle), torch.where(fits, middle, high)
        stayed = fits.to(sizes.dtype)
    fitting = shrunk(high.masked_fill(start <= budget.bound, 0.0))
    more = (shrunk(low) - fitting).relu_()
    room = (budget.bound - cost(fitting)).div(unit, rounding_mode="floor")
    fitting += torch.minimum((room - (more.cumsum(-1) - more)).relu_(), more)
    return (fitting.sum(0) if budget.one_sided else fitting) * signs


def subtract_mean(
    gradient: Tensor, integers: Tensor, values: Tensor, over: Tensor, budget: Budget
) -> Tensor:
    """Subtracts the mean signed gradient of the nonzero weights of projected tiles, in place.

    The projection undoes a change that is common to all of them, so that this part of the
    gradient has no effect.

    Args:
        gradient: [rows, K], contiguous; updated.
        integers: as `project` left them.
        values: what they were rounded from.
        over: booleans [rows, tiles], the tiles that were projected.
        budget: tells whether positive and negative weights are projected apart.

    Returns:
        [rows, tiles], the sum of the new gradient × values in projected tiles, else 0.
    """
    tile_size = budget.tile_size_in(integers.shape[1])
    if gradient.device.type == "cpu":
        scaled = torch.empty_like(over, dtype=gradient.dtype)
        some = (over.numpy(), tile_size, budget.one_sided, scaled.numpy())
        subtract_mean_tiles(gradient.numpy(), integers.numpy(), values.numpy(), *some)
        return scaled
    inside = over.unsqueeze(-1)
    tiles = without_mean(tiled(gradient, tile_size), tiled(integers, tile_size) * inside, budget)
    gradient.copy_(tiles.flatten(1)[:, : integers.shape[1]])
    return (tiles * inside * tiled(values, tile_size)).sum(-1)


def without_mean(gradient: Tensor, projected: Tensor, budget: Budget) -> Tensor:
    """`subtract_mean` as tensor operations, for any device.

    Args:
        gradient: its tiles [..., T].
        projected: whole numbers, 0 in tiles that were not projected.
        budget: tells whether positive and negative weights are projected apart.
    """
    signs = projected.sign()
    for some in (signs.clamp(min=0), signs.clamp(max=0)) if budget.one_sided else (signs,):
        shared = (gradient * some).sum(-1, keepdim=True)
        gradient = gradient - some * (shared / some.abs().sum(-1, keepdim=True).clamp_(min=1))
    return gradient


def _check_exact(dtype: torch.dtype, largest: int, cost: int) -> None:
    """Raises UnsupportedLayer where sums in this type, or costs in int64, would be rounded."""
    if largest >= (2**24 if dtype == torch.float32 else 2**53) or cost >= 2**62:
        raise UnsupportedLayer(
            f"sums of up to {largest} weight units, or their products with the inputs, are not "
            f"exact in {dtype}; give weights or inputs fewer bits, a smaller tile, or use float64."
        )
