"""What a solver is given and what it returns: one layer as plain matrices.

Rules of this room: a problem is checked once, when it is built; solvers are pure functions from a
`LayerProblem` to a `LayerSolution`; shapes are [groups, rows, columns], where a linear layer has
one group and a grouped convolution has one dot product per group and output channel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
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
        weight_low, weight_high: range of the integers, weight_low <= 0 <= weight_high.
        input_low, input_high: range of the integer inputs, low <= 0 <= high: an int for all, or
            an integer tensor [K] or [groups, K].
        cross: [groups, K, K], X~ X^T / n; None where both inputs are the same (= hessian).
        quant_mean, float_mean: [groups, K] means of X~ and X, given only if the layer has a bias
            that may be shifted.
        accumulator_bit_width: width P of the signed accumulator; None for no limit.
        tile_size: inputs per accumulator, in the order of the columns; None for the whole row.
            The last tile may be short.
        shared_scale: all groups and rows keep one common scale (per-tensor quantization).
        power_of_two: the scale must stay a power of two times the start scale.

    Raises:
        NonFiniteValues: a tensor holds NaN or infinity.
        AccumulatorTooNarrow: the accumulator is narrower than 2 bits.
        InvalidTile: the tile size is below 1.
        InvalidOption: a shape, a range or a width is impossible.
    """

    weight: Tensor
    hessian: Tensor
    scale: Tensor
    weight_low: int
    weight_high: int
    input_low: int | Tensor
    input_high: int | Tensor
    cross: Tensor | None = None
    quant_mean: Tensor | None = None
    float_mean: Tensor | None = None
    accumulator_bit_width: int | None = None
    tile_size: int | None = None
    shared_scale: bool = False
    power_of_two: bool = False

    def __post_init__(self) -> None:
        self._check_widths()
        self._check_shapes()
        for name in ("weight", "hessian", "cross", "scale", "quant_mean", "float_mean"):
            tensor = getattr(self, name)
            # The sum is one cheap pass; only a suspicious one is looked at element by element.
            if tensor is not None and not tensor.sum().isfinite() and not tensor.isfinite().all():
                raise NonFiniteValues(f"The layer's {name} holds NaN or infinity.")
        if not bool((self.scale > 0).all()):
            raise InvalidOption("Every scale must be positive.")
        low, high = self.input_range
        if bool((low > 0).any()) or bool((high < 0).any()):
            raise InvalidOption("The input range must contain zero.")
        # Python integers: the product itself must not wrap.
        largest_input = max(-int(low.min()), int(high.max()))
        if largest_input * max(-self.weight_low, self.weight_high) >= 2**62:
            raise InvalidOption("Weights times inputs must stay below 2^62: use fewer bits.")

    def _check_widths(self) -> None:
        bits, tile = self.accumulator_bit_width, self.tile_size
        if bits is not None and bits < 2:
            raise AccumulatorTooNarrow(f"An accumulator needs at least 2 bits, not {bits}.")
        if bits is not None and bits > WIDEST_ACCUMULATOR:
            raise InvalidOption(f"Accumulators wider than {WIDEST_ACCUMULATOR} bits: use None.")
        if tile is not None and tile < 1:
            raise InvalidTile(f"A tile needs at least one input, not {tile}.")
        if not self.weight_low <= 0 <= self.weight_high:
            raise InvalidOption("The range of the integer weights must contain zero.")

    def _check_shapes(self) -> None:
        if self.weight.ndim != 3 or 0 in self.weight.shape:
            raise InvalidOption("The weight must be [groups, rows, columns], none of them zero.")
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
                raise InvalidOption(f"{name} has shape {tuple(tensor.shape)}, not {shapes}.")
        if (self.quant_mean is None) != (self.float_mean is None):
            raise InvalidOption("Give both quant_mean and float_mean, or neither.")

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

    @property
    def tile_length(self) -> int:
        """Inputs of one full tile; K where one accumulator takes the whole row."""
        return self.columns if self.tile_size is None else min(self.tile_size, self.columns)

    @property
    def tiles(self) -> int:
        """Accumulators per dot product."""
        return -(-self.columns // self.tile_length)

    @property
    def tile_of_column(self) -> Tensor:
        """[K] int64 index of the tile that each input belongs to."""
        return torch.arange(self.columns, device=self.weight.device) // self.tile_length

    @property
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
        integers: int32 [groups, rows, K].
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
