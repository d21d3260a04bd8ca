"""Random layers for the tests of this room, and a check of budgets that shares no code with it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from brevitas_axe.methods.solvers import LayerProblem, LayerSolution


def random_problem(
    rows: int = 6,
    columns: int = 24,
    *,
    groups: int = 1,
    signed: bool = False,
    weight_bits: int = 4,
    input_bits: int = 8,
    mean: float = 0.0,
    dead: int = 0,
    bias: bool = False,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    **options: object,
) -> LayerProblem:
    """A layer with correlated inputs, whose float inputs differ a little from the quantized."""
    generator = torch.Generator().manual_seed(seed)
    samples = 2 * columns + 8
    mix = torch.randn(groups, columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(groups, samples, columns, generator=generator) @ mix + mean
    inputs = inputs if signed else inputs.relu()
    low, high = (-(2 ** (input_bits - 1)), 2 ** (input_bits - 1) - 1) if signed else (0, 255)
    if not signed:
        high = 2**input_bits - 1
    step = inputs.abs().max() / high
    quantized = (inputs / step).round().clamp(low, high) * step
    inputs = inputs + 0.05 * step * torch.randn(inputs.shape, generator=generator)
    quantized[..., :dead] = 0
    inputs, quantized = inputs.double(), quantized.double()
    weight = torch.randn(groups, rows, columns, generator=generator)
    largest = 2 ** (weight_bits - 1) - 1
    fields = {
        "weight": weight.to(dtype),
        "hessian": (quantized.mT @ quantized / samples).to(dtype),
        "cross": (quantized.mT @ inputs / samples).to(dtype),
        "scale": (weight.abs().amax(-1) / largest).to(dtype),
        "weight_low": -largest,
        "weight_high": largest,
        "input_low": low,
        "input_high": high,
        "quant_mean": quantized.mean(1).to(dtype) if bias else None,
        "float_mean": inputs.mean(1).to(dtype) if bias else None,
    }
    return LayerProblem(**(fields | options))


def worst_sums(problem: LayerProblem, integers: Tensor) -> tuple[int, int]:
    """(largest, smallest) sum that any inputs can give any tile, in Python integers."""
    values = integers.numpy().astype(object)
    groups, rows, columns = values.shape
    low = np.broadcast_to(np.asarray(problem.input_low, dtype=object), (groups, columns))
    high = np.broadcast_to(np.asarray(problem.input_high, dtype=object), (groups, columns))
    length = problem.tile_size or columns
    largest = smallest = 0
    for g in range(groups):
        for row in range(rows):
            for first in range(0, columns, length):
                ends = [
                    (int(q) * int(a), int(q) * int(b))
                    for q, a, b in zip(
                        values[g, row, first : first + length],
                        low[g, first : first + length],
                        high[g, first : first + length],
                        strict=True,
                    )
                ]
                largest = max(largest, sum(max(pair) for pair in ends))
                smallest = min(smallest, sum(min(pair) for pair in ends))
    return largest, smallest


def assert_feasible(problem: LayerProblem, solution: LayerSolution) -> None:
    """Integers inside their range, sums inside the accumulator, a positive finite scale."""
    integers = solution.integers
    assert integers.dtype == torch.int32
    assert integers.shape == problem.weight.shape
    assert solution.scale.shape == problem.scale.shape
    assert bool((solution.scale > 0).all())
    assert bool(solution.scale.isfinite().all())
    assert integers.min() >= problem.weight_low
    assert integers.max() <= problem.weight_high
    if problem.accumulator_bit_width is not None:
        largest, smallest = worst_sums(problem, integers)
        limit = 2 ** (problem.accumulator_bit_width - 1) - 1
        assert -limit <= smallest <= largest <= limit
