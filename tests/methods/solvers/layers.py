"""Random layers for the tests of this room, and a check of budgets that shares no code with it."""

from __future__ import annotations

from itertools import pairwise

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


def worst_sums(problem: LayerProblem, integers: Tensor) -> list[tuple[int, int]]:
    """(smallest, largest) sum of each tile over all rows and inputs, in Python integers."""
    values = integers.numpy().astype(object)
    groups, rows, columns = values.shape
    low = np.broadcast_to(np.asarray(problem.input_low, dtype=object), (groups, columns))
    high = np.broadcast_to(np.asarray(problem.input_high, dtype=object), (groups, columns))
    starts = problem.tile_starts or range(0, columns, problem.tile_size or columns)
    sums = []
    for first, last in pairwise([*starts, columns]):
        smallest = largest = 0
        for g in range(groups):
            for row in range(rows):
                ends = [
                    (int(q) * int(a), int(q) * int(b))
                    for q, a, b in zip(
                        values[g, row, first:last],
                        low[g, first:last],
                        high[g, first:last],
                        strict=True,
                    )
                ]
                smallest = min(smallest, sum(min(pair) for pair in ends))
                largest = max(largest, sum(max(pair) for pair in ends))
        sums.append((smallest, largest))
    return sums


def largest_sum(problem: LayerProblem, integers: Tensor) -> int:
    """Largest magnitude of any tile's sum."""
    return max(max(-low, high) for low, high in worst_sums(problem, integers))


def assert_feasible(problem: LayerProblem, solution: LayerSolution) -> None:
    """Integers inside their range, sums inside the accumulator, a positive finite scale."""
    integers = solution.integers
    assert integers.dtype == torch.int32
    assert integers.shape == problem.weight.shape
    assert solution.scale.shape == problem.scale.shape
    assert bool((solution.scale > 0).all())
    assert bool(solution.scale.isfinite().all())
    assert bool((integers >= torch.as_tensor(problem.weight_low)).all())
    assert bool((integers <= torch.as_tensor(problem.weight_high)).all())
    widths = problem.accumulator_bit_width
    sums = worst_sums(problem, integers)
    each = widths.tolist() if torch.is_tensor(widths) else [widths] * len(sums)
    for (smallest, largest), bits in zip(sums, each, strict=True):
        if bits:
            limit = 2 ** (bits - 1) - 1
            assert -limit <= smallest <= largest <= limit
