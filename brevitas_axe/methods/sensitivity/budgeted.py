"""Layers solved under the budget of a choice, from moments of their float inputs.

The exact loss of a choice is ||w X - s q X~||² / n, with X the inputs of the float model and X~ the
same inputs on the choice's grid: so weight bits, input bits and accumulator all enter. Where the
layer has a bias, it takes the mean error, as it does when the model is quantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from brevitas_axe.accumulator import datatype_bound
from brevitas_axe.formats import Format
from brevitas_axe.methods.sensitivity.case import Case
from brevitas_axe.methods.sensitivity.trials import Trials, Value
from brevitas_axe.methods.sensitivity.twin import Substitute, channel_axis
from brevitas_axe.methods.solvers import LayerProblem, LayerSolution
from brevitas_axe.methods.solvers.tasks import solve_layer
from brevitas_axe.model.layers import Layer, roll_weight, unroll_weight
from brevitas_axe.model.moments import Moments, Statistics
from brevitas_axe.model.running import first_input, hooked
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import method

Found = TypeVar("Found")
# Memory for second moments at a time, in bytes.
MEMORY = 2**30


@dataclass(frozen=True, eq=False)
class LayerMoments:
    """Second moments around one layer.

    Attributes:
        outputs: float64 [groups, rows], mean squares of the float dot products w X.
        quantized: input bits or format → moments of X~, and of X~ with X.
        input_errors: input bits or format → mean squared error of an input.
    """

    outputs: Tensor
    quantized: dict[Format | None, Statistics]
    input_errors: dict[Format | None, float]


def moments(case: Case, names: list[str]) -> Iterator[dict[str, LayerMoments]]:
    """Moments of the named layers, as many at a time as MEMORY allows."""
    layers = case.layers()
    chunk: list[str] = []
    used = 0
    for name in names:
        shape = unroll_weight(layers[name], layers[name].weight).shape
        need = 16 * shape[0] * shape[2] ** 2 * len(case.inputs[name])
        if chunk and used + need > MEMORY:
            yield _collected(case, chunk)
            chunk, used = [], 0
        chunk.append(name)
        used += need
    if chunk:
        yield _collected(case, chunk)


def _collected(case: Case, names: list[str]) -> dict[str, LayerMoments]:
    twin, layers = case.sharing_copy()
    quantized = {
        name: {bits: Moments(name, layers[name], cross=True) for bits in case.inputs[name]}
        for name in names
    }
    squares: dict[str, list[Tensor]] = {name: [] for name in names}
    errors: dict[str, dict[Format | None, list[tuple[float, int]]]] = {
        name: {bits: [] for bits in case.inputs[name]} for name in names
    }

    def watch(name: str, layer: Layer, inputs: tuple, named: dict, output: Tensor) -> None:
        x = first_input(inputs, named)
        rows = output.movedim(channel_axis(layer), 0).flatten(1)
        if layer.bias is not None:
            rows = rows - layer.bias.unsqueeze(1)
        squares[name].append(rows.square().sum(1).double())
        for bits, grid in case.inputs[name].items():
            rounded = x if grid is None else grid(x)
            quantized[name][bits].add(rounded, x)
            squared = (rounded - x).square()
            errors[name][bits].append((float(squared.sum()), squared.numel()))

    with hooked({name: layers[name] for name in names}, after=watch), torch.no_grad():
        for args, kwargs in case.batches:
            twin(*args, **kwargs)
    found = {}
    for name, some in quantized.items():
        statistics = {bits: moments.finish(torch.float64) for bits, moments in some.items()}
        shape = unroll_weight(layers[name], layers[name].weight).shape[:2]
        samples = next(iter(some.values())).samples
        found[name] = LayerMoments(
            torch.stack(squares[name]).sum(0).view(shape) / samples,
            statistics,
            {bits: _mean(sums) for bits, sums in errors[name].items()},
        )
    return found


def _mean(sums: list[tuple[float, int]]) -> float:
    """Mean of all numbers, from the (sum, count) of each batch."""
    totals, counts = zip(*sums, strict=True)
    return sum(totals) / sum(counts)


def over_layers(
    case: Case,
    trials: Trials,
    function: Callable[..., Value],
    extra: Callable[[], Mapping[str, tuple[Any, ...]]] | None = None,
) -> dict[str, list[float]]:
    """One trial per layer, function(case, layer name, its moments, *extra) → numbers.

    Args:
        case: what is scored.
        trials: runs those that are not known yet.
        function: at the top level of a module, so that processes can find it.
        extra: gives more arguments by layer name; called only if there is work.
    """
    keys = {name: f"{name} {case.choices.layers[name]}" for name in case.names}
    missing = [name for name in case.names if not trials.knows(keys[name])]
    more = extra() if extra is not None and missing else {}
    for known in moments(case, missing):
        trials.map(function, [(keys[n], (case, n, known[n], *more.get(n, ()))) for n in known])
    found = trials.map(function, [(keys[name], ()) for name in case.names])
    return {n: v for n, v in zip(case.names, found, strict=True) if isinstance(v, list)}


def for_choices(case: Case, name: str, function: Callable[[LayerPrecision], Found]) -> list[Found]:
    """Results of a function for every choice; choices that cannot differ share one call."""
    options = [unlimited(case, name, choice) for choice in case.choices.layers[name]]
    values = {choice: function(choice) for choice in dict.fromkeys(options)}
    return [values[choice] for choice in options]


def problem(case: Case, name: str, choice: LayerPrecision, known: LayerMoments) -> LayerProblem:
    """The solver's problem for a layer at one choice."""
    layer = case.layer(name)
    grid, start = case.inputs[name][choice.input], case.weights[name][choice.weight]
    statistics = known.quantized[choice.input]
    has_bias = layer.bias is not None
    return LayerProblem(
        weight=unroll_weight(layer, layer.weight.detach()).float(),
        hessian=statistics["hessian"],
        cross=statistics["cross"],
        quant_mean=statistics["quant_mean"] if has_bias else None,
        float_mean=statistics["float_mean"] if has_bias else None,
        scale=start.scale,
        weight_low=start.low,
        weight_high=start.high,
        input_low=grid.input_range.low if grid else 0,
        input_high=grid.input_range.high if grid else 0,
        accumulator_bit_width=choice.accumulator,
        tile_size=choice.tile,
        shared_scale=start.shared,
        power_of_two=start.power_of_two,
        significant=start.significant,
        name=name,
    )


def solve(layer: LayerProblem, solver: str = "gpfq") -> LayerSolution:
    """The layer as it is solved when a model is quantized, at the same quality and in float32."""
    cross = None if layer.cross is None else layer.cross.float()
    single = replace(layer, hessian=layer.hessian.float(), cross=cross)
    return solve_layer(single, method("solvers", solver), act_order=False, quality="best")


def error(layer: LayerProblem, solution: LayerSolution, outputs: Tensor) -> Tensor:
    """Exact mean squared error of every row, float64 [groups, rows], like `outputs`."""
    return (solution.loss(layer) + outputs).clamp(min=0)


def part(case: Case, name: str, choice: LayerPrecision, known: LayerMoments) -> Substitute:
    """The layer solved at a choice, to be put into the twin."""
    layer = problem(case, name, choice, known)
    module, solution = case.layer(name), solve(layer)
    value = roll_weight(module, solution.value(layer)).to(module.weight.dtype)
    bias = None
    if solution.bias_shift is not None and module.bias is not None:
        bias = module.bias.detach() + solution.bias_shift.reshape(-1).to(module.bias)
    return Substitute(value, case.inputs[name][choice.input], bias)


def unlimited(case: Case, name: str, choice: LayerPrecision) -> LayerPrecision:
    """The choice without its accumulator where the data types alone cannot overflow it."""
    grid, start = case.inputs[name][choice.input], case.weights[name][choice.weight]
    if choice.accumulator is None or grid is None:
        return choice
    layer = case.layer(name)
    columns = unroll_weight(layer, layer.weight).shape[2]
    weight_bits = (start.high - start.low).bit_length()
    largest = max(-grid.input_range.low, grid.input_range.high)
    bound = datatype_bound(
        min(choice.tile or columns, columns), largest.bit_length(), weight_bits, False
    )
    return choice if choice.accumulator < bound else replace(choice, accumulator=None, tile=None)
