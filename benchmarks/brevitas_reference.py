"""Brevitas's own solvers on one linear layer, as a reference for integers and for time."""

from __future__ import annotations

import time
import warnings
from typing import NamedTuple

import brevitas.nn as qnn
import torch
from brevitas.graph.gpfq import GPFQ, gpfq_mode
from brevitas.graph.gptq import GPTQ, gptq_mode
from brevitas.graph.qronos import Qronos
from brevitas.quant import Int8ActPerTensorFloat, Int8WeightPerChannelFloat, Uint8ActPerTensorFloat
from brevitas_examples.common.axe import a2gpfq_mode, a2gptq_mode
from torch import Tensor

from brevitas_axe.methods.solvers import LayerProblem


class Reference(NamedTuple):
    """A problem, Brevitas's integers for it, and the seconds that its update took."""

    problem: LayerProblem
    integers: Tensor
    seconds: float


def clock() -> float:
    """Seconds, when all that was asked of the devices is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class FixedScaleWeight(Int8WeightPerChannelFloat):
    """The scale starts as a statistic of the weights and stays where it is."""

    scaling_impl_type = "parameter_from_stats"


def solve(
    algorithm: str,
    rows: int,
    columns: int,
    *,
    samples: int = 0,
    weight_bits: int = 4,
    input_bits: int = 8,
    signed: bool = False,
    bit_width: int | None = 16,
    tile_size: int | None = None,
    act_order: bool = False,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
    seed: int = 0,
) -> Reference:
    """Runs Brevitas's gpfq, gptq or qronos on a random correlated layer of one linear module."""
    generator = torch.Generator().manual_seed(seed)
    samples = samples or 2 * columns
    mix = torch.randn(columns, columns, generator=generator) / columns**0.5
    inputs = torch.randn(samples, columns, generator=generator) @ (mix + torch.eye(columns))
    inputs = (inputs if signed else inputs.relu()).to(device, dtype)
    layer = qnn.QuantLinear(
        columns,
        rows,
        bias=False,
        weight_quant=FixedScaleWeight.let(bit_width=weight_bits),
        input_quant=(Int8ActPerTensorFloat if signed else Uint8ActPerTensorFloat).let(
            bit_width=input_bits
        ),
    )
    weight = torch.randn(rows, columns, generator=generator) / columns**0.5
    layer.weight.data = weight
    model = torch.nn.Sequential(layer).to(device, dtype)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(inputs)
    model.eval()
    with torch.no_grad():
        quantized = layer.input_quant(inputs)
        scale = layer.quant_weight().scale.detach().flatten()
        value = quantized.value
        hessian, cross = value.T @ value / samples, value.T @ inputs / samples
    problem = LayerProblem(
        weight=layer.weight.detach().clone()[None],
        hessian=hessian[None],
        cross=cross[None],
        scale=scale.clone()[None],
        weight_low=-(2 ** (weight_bits - 1)) + 1,
        weight_high=2 ** (weight_bits - 1) - 1,
        input_low=-(2 ** (input_bits - 1)) if signed else 0,
        input_high=2 ** (input_bits - signed) - 1,
        accumulator_bit_width=bit_width,
        tile_size=tile_size,
    )
    limits = {
        "max_accumulator_bit_width": bit_width,
        "max_accumulator_tile_size": tile_size,
    }
    if algorithm == "gptq":
        mode = gptq_mode if bit_width is None else a2gptq_mode
        options = {"gptq_class": GPTQ}
    else:
        mode = gpfq_mode if bit_width is None else a2gpfq_mode
        options = {"algorithm_impl": Qronos if algorithm == "qronos" else GPFQ}
    if bit_width is not None:
        options |= limits
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with mode(model, act_order=act_order, dtype=dtype, **options) as running:
            running.model(inputs)
            begun = clock()
            running.update()
            seconds = clock() - begun
        integers = (layer.quant_weight().value / scale.unsqueeze(-1)).round().to(torch.int32)
    return Reference(problem, integers[None], seconds)
