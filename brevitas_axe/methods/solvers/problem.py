"""What a solver is given and what it returns: one layer as plain matrices.

Rules of this room: a problem is checked once, when it is built; solvers are pure functions from a
`LayerProblem` to a `LayerSolution`; shapes are [groups, rows, columns], where a linear layer has
one group and a grouped convolution has one dot product per group and output channel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from brevitas_axe.errors import AccumulatorTooNarrow, InvalidOption, InvalidTile, NonFiniteValues

# "fast" is the published algorithm; "best" searches on under the same budget.
Quality = Literal["fast", "best"]

# Largest accumulator whose running sums, plus one product below 2^62, stay inside int64.
WIDEST_ACCUMULATOR = 62
# Rounding errors of a second moment, in units of its last place, that a variance must exceed.
ROUNDINGS = 16
# Width of a tile's accumulator, among those of the other tiles, that stands for no limit.
UNLIMITED = 0


@dataclass(frozen=True, eq=False)
class LayerProblem:
    """One layer to quantize, on one device, with K columns (inputs) per dot product.

    The loss of integers q with scale s is, per row and with X~ the quantized and X the float
    inputs of n samples, ||w X - s q X~||^2 / n.

    Attributes:
        weight: [groups, rows, K] float weights w.
        hessian: [groups, K, K], X~ X~^T / n.
        scale: positive start scale, [groups, rows], or [groups, rows, tiles] where each tile has
            its own.
        weight_low, weight_high: range of the integers, weight_low <= 0 <= weight_high: an int for
            all, or an integer tensor [K].
        input_low, input_high: range of the integer inputs, low <= 0 <= high: an int for all, or
            an integer tensor [K] or [groups, K].
        cross: [groups, K, K], X~ X^T / n; None where both inputs are the same (= hessian).
        quant_mean, float_mean: [groups, K] means of X~ and X, given only if the layer has a bias
            that may be shifted.
        accumulator_bit_width: width P of the signed accumulator; None for no limit. An int64
            tensor [tiles] gives every tile its own, `UNLIMITED` to a tile without a limit.
        tile_size: inputs per accumulator, in the order of the columns; None for the whole row.
            The last tile may be short.
        tile_starts: the first column of every tile, ascending from 0, instead of a tile size.
        shared_scale: all groups and rows keep one common scale (per-tensor quantization).
        power_of_two: the scale must stay a power of two times the start scale.
        significant: bits that an integer may begin with, all behind them being zero: the numbers
            of a floating-point format on their finest grid. None for all integers.
        binary: weights of one bit, -1 or 1 and never 0, in a range from -1 to 1: a bool for all, or
            a bool tensor [tiles]. Every choice of signs must fit the accumulator.
        name: of the layer, for messages.

    Raises:
        NonFiniteValues: a tensor contains NaN or infinity.
        AccumulatorTooNarrow: the accumulator is narrower than 2 bits.
        InvalidTile: the tile size is below 1, or the tiles do not start in ascending order.
        InvalidOption: a shape, a range or a width is impossible.
    """

    weight: Tensor
    hessian: Tensor
    scale: Tensor
    weight_low: int | Tensor
    weight_high: int | Tensor
    input_low: int | Tensor
    input_high: int | Tensor
    cross: Tensor | None = None
    quant_mean: Tensor | None = None
    float_mean: Tensor | None = None
    accumulator_bit_width: int | Tensor | None = None
    tile_size: int | None = None
    tile_starts: tuple[int, ...] | None = None
    shared_scale: bool = False
    power_of_two: bool = False
    significant: int | None = None
    binary: bool | Tensor = False
    name: str = ""

    def __post_init__(self) -> None:
        if self.weight.ndim != 3 or 0 in self.weight.shape:
            raise InvalidOption(
                f"The weight{self._of} must be [groups, rows, columns], none of them zero."
            )
        self._check_tiles()
        self._check_widths()
        self._check_shapes()
        for name in ("weight", "hessian", "cross", "scale", "quant_mean", "float_mean"):
            tensor = getattr(self, name)
            # The sum is one cheap pass; the elements are checked only where it is not finite.
            if tensor is not None and not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise NonFiniteValues(f"The {name}{self._of} contains NaN or infinity.")
        if not bool((self.scale > 0).all()):
            raise InvalidOption(f"Every scale{self._of} must be positive.")
        low, high = self.input_range
        if bool((low > 0).any()) or bool((high < 0).any()):
            raise InvalidOption(f"The input range{self._of} must contain zero.")
        smallest, largest = self.weight_range
        if bool((smallest > 0).any()) or bool((largest < 0).any()):
            raise InvalidOption(f"The range of the integer weights{self._of} must contain zero.")
        # Python integers: the product itself must not wrap.
        largest_input = max(-int(low.min()), int(high.max()))
        product = largest_input * max(-int(smallest.min()), int(largest.max()))
        if product >= 2**62 and not (self.significant and self.unlimited):
            raise InvalidOption(
                f"Weights times inputs{self._of} must stay below 2^62: use fewer bits."
            )
        self._check_binary()

    def _check_binary(self) -> None:
        """Weights that cannot be smaller must fit as they are."""
        if not bool(self.binary_columns.any()):
            return
        smallest, largest = (bound[self.binary_columns] for bound in self.weight_range)
        if bool((smallest != -1).any()) or bool((largest != 1).any()):
            raise InvalidOption(f"Weights of one bit{self._of} must range from -1 to 1.")
        low, high = self.counted_range
        size = torch.maximum(-low, high) * self.binary_columns
        sums = size.new_zeros(len(size), self.tiles).index_add_(1, self.tile_of_column, size)
        over = ((sums > self.tile_limits) & (self.tile_limits > 0)).any(0)
        if bool(over.any()):
            tile = int(over.int().argmax())
            count = self.tile_edges[tile + 1] - self.tile_edges[tile]
            raise AccumulatorTooNarrow(
                f"Weights of one bit{self._of} are never 0, so {count} of them do not fit an "
                f"accumulator of {self.tile_bit_widths[tile]} bits; give it a wider one or smaller "
                "tiles, or the weights 2 bits."
            )

    @property
    def _of(self) -> str:
        """Names the layer in messages."""
        return f" of layer '{self.name}'" if self.name else " of the layer"

    def _check_widths(self) -> None:
        bits = self.accumulator_bit_width
        if torch.is_tensor(bits) and (bits.is_floating_point() or bits.shape != (self.tiles,)):
            raise InvalidOption(
                f"Accumulator widths{self._of} must be integers, one for each of its "
                f"{self.tiles} tiles."
            )
        for width in self.tile_bit_widths:
            if width is not None and width < 2:
                raise AccumulatorTooNarrow(
                    f"An accumulator{self._of} needs at least 2 bits, not {width}."
                )
            if width is not None and width > WIDEST_ACCUMULATOR:
                raise InvalidOption(
                    f"An accumulator{self._of} wider than {WIDEST_ACCUMULATOR} bits is as good as "
                    "none: give no limit."
                )

    def _check_tiles(self) -> None:
        size, starts = self.tile_size, self.tile_starts
        if size is not None and size < 1:
            raise InvalidTile(f"A tile{self._of} needs at least one input, not {size}.")
        if starts is None:
            return
        if size is not None:
            raise InvalidTile(
                f"Give either the tile size{self._of} or the tiles' starts, not both."
            )
        edges = (*starts, self.columns)
        if edges[0] != 0 or any(a >= b for a, b in pairwise(edges)):
            raise InvalidTile(
                f"The tiles{self._of} must start at 0 and in ascending order, before the end of "
                f"its {self.columns} columns."
            )

    def _check_shapes(self) -> None:
        groups, rows, columns = self.weight.shape
        expected = {
            "hessian": [(groups, columns, columns)],
            "cross": [(groups, columns, columns)],
            "quant_mean": [(groups, columns)],
            "float_mean": [(groups, columns)],
            "scale": [(groups, rows), (groups, rows, self.tiles)],
        }
        for name, shapes in expected.items():
            tensor = getattr(self, name)
            if tensor is not None and tuple(tensor.shape) not in shapes:
                raise InvalidOption(
                    f"The {name}{self._of} has shape {tuple(tensor.shape)}, not {shapes}."
                )
        for name in ("weight_low", "weight_high"):
            bound = getattr(self, name)
            if torch.is_tensor(bound) and (bound.is_floating_point() or bound.shape != (columns,)):
                raise InvalidOption(
                    f"The {name}{self._of} must be an integer, or one for each of its {columns} "
                    "columns."
                )
        if (self.quant_mean is None) != (self.float_mean is None):
            raise InvalidOption(f"Give both quant_mean and float_mean{self._of}, or neither.")

    def to(self, device: torch.device | str) -> LayerProblem:
        """The same layer on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {
            name: value.to(device) for name, value in values.items() if torch.is_tensor(value)
        }
        return replace(self, **tensors)

    @property
    def columns(self) -> int:
        """Inputs K of one dot product."""
        return self.weight.shape[-1]

    @cached_property
    def tile_edges(self) -> tuple[int, ...]:
        """First column of every tile, and K behind the last."""
        if self.tile_starts is not None:
            return (*self.tile_starts, self.columns)
        return (*range(0, self.columns, self.tile_size or self.columns), self.columns)

    @property
    def tiles(self) -> int:
        """Accumulators per dot product."""
        return len(self.tile_edges) - 1

    @cached_property
    def tile_of_column(self) -> Tensor:
        """[K] int64 index of the tile that each input belongs to."""
        lengths = torch.tensor(self.tile_edges).diff()
        tiles = torch.arange(self.tiles).repeat_interleave(lengths)
        return tiles.to(self.weight.device)

    @property
    def tile_bit_widths(self) -> tuple[int | None, ...]:
        """Width of every tile's accumulator, None for no limit."""
        bits = self.accumulator_bit_width
        if torch.is_tensor(bits):
            return tuple(None if width == UNLIMITED else width for width in bits.cpu().tolist())
        return (bits,) * self.tiles

    @cached_property
    def tile_limits(self) -> Tensor:
        """[tiles] int64 largest magnitude that each accumulator holds; 0 for no limit."""
        limits = [0 if bits is None else 2 ** (bits - 1) - 1 for bits in self.tile_bit_widths]
        return torch.tensor(limits).to(self.weight.device)

    @property
    def unlimited(self) -> bool:
        """Whether no accumulator has a limit."""
        return all(bits is None for bits in self.tile_bit_widths)

    @cached_property
    def weight_range(self) -> tuple[Tensor, Tensor]:
        """(low, high), int64 [K], of the integer weights."""
        low, high = (
            torch.as_tensor(bound, dtype=torch.int64).to(self.weight.device).expand(self.columns)
            for bound in (self.weight_low, self.weight_high)
        )
        return low, high

    @cached_property
    def binary_tiles(self) -> Tensor:
        """[tiles] bool, those whose weights are -1 or 1."""
        return torch.as_tensor(self.binary).to(self.weight.device).expand(self.tiles)

    @property
    def binary_columns(self) -> Tensor:
        """[K] bool, the same for every column."""
        return self.binary_tiles[self.tile_of_column]

    def nearest(self, ratio: Tensor) -> Tensor:
        """The nearest integers that weights in units of their scale may become, [..., K]."""
        rounded = ratio.round().clamp(*self.weight_range)
        signs = torch.where(ratio < 0, -1.0, 1.0).to(ratio)
        return torch.where(self.binary_columns, signs, rounded)

    @cached_property
    def counted_range(self) -> tuple[Tensor, Tensor]:
        """The input range as budgets count it: zero in tiles without a limit.

        Inputs of zero leave a budget untouched, so that a tile without a limit needs no case of
        its own.
        """
        low, high = self.input_range
        limited = (self.tile_limits > 0)[self.tile_of_column]
        return low * limited, high * limited

    @cached_property
    def input_range(self) -> tuple[Tensor, Tensor]:
        """(low, high), int64 [groups, K], of the integer inputs."""
        shape = (self.weight.shape[0], self.columns)
        low, high = (
            torch.as_tensor(bound, dtype=torch.int64).to(self.weight.device).expand(shape)
            for bound in (self.input_low, self.input_high)
        )
        return low, high

    @property
    def dtype(self) -> torch.dtype:
        """float64 where the weight or the second moments are, else float32."""
        return torch.promote_types(
            torch.promote_types(self.weight.dtype, self.hessian.dtype), torch.float32
        )

    @property
    def tile_scale(self) -> Tensor:
        """[groups, rows, tiles] start scale, one per tile."""
        scale = self.scale if self.scale.ndim == 3 else self.scale.unsqueeze(-1)
        return scale.detach().to(self.dtype).expand(*self.weight.shape[:2], self.tiles)


@dataclass(frozen=True, eq=False)
class LayerSolution:
    """Integers and scale of one layer.

    Attributes:
        integers: int32 [groups, rows, K], or int64 where a floating-point format needs it.
        scale: shaped like the problem's scale.
        bias_shift: [groups, rows] to be added to the bias, or None.
    """

    integers: Tensor
    scale: Tensor
    bias_shift: Tensor | None = None

    def value(self, problem: LayerProblem) -> Tensor:
        """[groups, rows, K] float64 weights that the integers stand for."""
        return self.integers * expanded(self.scale.double(), problem)

    def loss(self, problem: LayerProblem) -> Tensor:
        """Exact loss of each row, without the constant w X X^T w / n.

        Computed on demand: in float64 it costs more than a fast solve.

        Returns:
            [groups, rows] float64, x H x - 2 x G w for x = s q, less what the shifted bias
            takes: the square of the mean error.
        """
        cross = problem.hessian if problem.cross is None else problem.cross
        value, weight = self.value(problem), problem.weight.detach().double()
        loss = (value * (value @ problem.hessian.double() - 2 * weight @ cross.double().mT)).sum(-1)
        return loss if self.bias_shift is None else loss - self.bias_shift.double().square()


def expanded(scale: Tensor, problem: LayerProblem) -> Tensor:
    """[groups, rows] or [groups, rows, tiles] to a scale per weight, broadcast to columns."""
    return scale.unsqueeze(-1) if scale.ndim == 2 else scale[:, :, problem.tile_of_column]


def with_bias_shift(problem: LayerProblem, solution: LayerSolution) -> LayerSolution:
    """The solution with the mean error in the bias, where there is one."""
    if problem.quant_mean is None or problem.float_mean is None:
        return solution
    wanted = (problem.weight.double() * problem.float_mean.double().unsqueeze(1)).sum(-1)
    given = (solution.value(problem) * problem.quant_mean.double().unsqueeze(1)).sum(-1)
    return replace(solution, bias_shift=wanted - given)


def centred(problem: LayerProblem) -> tuple[Tensor, Tensor]:
    """Second moments about the means, which is what is left after the bias takes the mean error.

    An input whose variance is lost in the rounding of its second moment counts as constant.

    Args:
        problem: with both means.

    Returns:
        (hessian - mu~ mu~^T, cross - mu~ mu^T), float64 [groups, K, K].
    """
    assert problem.quant_mean is not None
    assert problem.float_mean is not None
    hessian = problem.hessian.double()
    cross = hessian if problem.cross is None else problem.cross.double()
    column, float_mean = problem.quant_mean.double().unsqueeze(-1), problem.float_mean.double()
    noise = ROUNDINGS * torch.finfo(problem.hessian.dtype).eps
    noise = noise * hessian.diagonal(dim1=-2, dim2=-1).unsqueeze(-1)
    hessian, cross = hessian - column * column.mT, cross - column * float_mean.unsqueeze(-2)
    varies = hessian.diagonal(dim1=-2, dim2=-1).unsqueeze(-1) > noise
    return hessian * varies * varies.mT, cross * varies


def about_means(problem: LayerProblem) -> LayerProblem:
    """The problem without means; with those it has, its moments are `centred`."""
    if problem.quant_mean is not None:
        hessian, cross = (moment.to(problem.dtype) for moment in centred(problem))
        problem = replace(problem, hessian=hessian, cross=cross)
    return replace(problem, quant_mean=None, float_mean=None)


def chosen(better: Tensor, found: LayerSolution, other: LayerSolution) -> LayerSolution:
    """The rows of one solution where it is better, [groups, rows], and those of another elsewhere.

    The result has no shift of the bias; see `with_bias_shift`.
    """
    row = better.unsqueeze(-1)
    return LayerSolution(
        torch.where(row, found.integers, other.integers),
        torch.where(better if found.scale.ndim == 2 else row, found.scale, other.scale),
    )
