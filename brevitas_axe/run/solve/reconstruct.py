"""Solved layers learn together, block by block, what their rounding does to the block's output.

BRECQ (Li et al., arXiv 2102.05426). Each block starts from the integers that its layers have, and
learns to give what the float model's block gives, from what the quantized blocks before it give.
What is learned is brought within every accumulator by the layer's own quantizer and checked in
exact integers; a block, and in the end the model, keeps what it had where that is better.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.core.function_wrapper import RoundSte
from torch import Tensor, nn

from brevitas_axe.accumulator import accumulator_limit, worst_case_sums
from brevitas_axe.errors import InvalidOption, NotProven
from brevitas_axe.methods.solvers.protocol import Solver, WideSolver, wide
from brevitas_axe.methods.solvers.rounding import (
    PUBLISHED_STRENGTH,
    beside,
    committed,
    learned,
)
from brevitas_axe.model.apply.weight_bits import is_binary
from brevitas_axe.model.apply.weights import (
    current_scale,
    is_power_of_two,
    write_solution,
)
from brevitas_axe.model.layers import Layer, integer_weight, unroll_weight
from brevitas_axe.model.pieces import Piece, Values, arguments, cut
from brevitas_axe.model.running import Batch, evaluating, float_twin, same_gradients, tensor_of
from brevitas_axe.run.solve.fisher import Weights, fisher_weights


def after_the_solve(
    model: nn.Module, solver: Solver, reference: nn.Module | None = None
) -> Callable[[Sequence[Batch], Mapping[str, Layer]], list[dict]]:
    """What a solver still does once the layers of a model are solved; to be called before.

    Args:
        model: not solved yet, and solved when the result is called.
        solver: of any scope; one of scope "layer" does nothing more.
        reference: the model to follow; None for the model without its quantizers.

    Returns:
        Function of calibration batches and solved layers that returns what `reconstruct` does.
    """
    wider = wide(solver)
    if wider is None:
        return lambda batches, layers: []
    followed = float_twin(model) if reference is None else reference
    return lambda batches, layers: reconstruct(model, followed, batches, layers, wider)


def check_of_blocks(solver: Solver) -> None:
    """Raises InvalidOption for a loss that asks what the whole model says.

    Args:
        solver: that is to solve one block at a time, of which no one says what the model gives.
    """
    wider = wide(solver)
    if wider is not None and wider.loss == "fisher":
        raise InvalidOption(
            "loss=fisher weights errors by what they change in the output of the whole model, and "
            "a transformer is solved one block at a time; take loss=mse."
        )


def reconstruct(
    model: nn.Module,
    reference: nn.Module,
    batches: Sequence[Batch],
    layers: Mapping[str, Layer],
    solver: WideSolver,
) -> list[dict]:
    """Learns the rounding of solved layers, in place.

    Args:
        model: solved.
        reference: its float twin from before the solve.
        batches: calibration; each step of the optimizer sees one of them, in turn.
        layers: the solved layers; those with a scale per tile, or with weights of one bit, are left
            as they are.
        solver: with a scope wider than a layer.

    Returns:
        For every block its layers and its loss at the start, as learned without a budget, and as
        kept, and for the model, under the name "model", the same.
    """
    usable = {
        name: layer
        for name, layer in layers.items()
        if layer.weight_quant.scale_tile is None and not is_binary(layer)
    }
    whole = solver.scope == "model"
    pieces = cut(model, [*usable], whole)
    generator = torch.Generator().manual_seed(solver.seed)
    log: list[dict] = []
    with evaluating(model), same_gradients(model), torch.no_grad():
        before = {name: _state(layer) for name, layer in usable.items()}
        [everything] = cut(model, [*usable], whole=True)
        importance = _weights(pieces, reference, batches, solver)
        ends = importance[-1]  # the last piece gives what the model gives
        start = _model_loss(everything, model, reference, batches, ends, solver)
        values = [arguments(model, pieces[0], batch) for batch in batches]
        floats = [arguments(reference, pieces[0], batch) for batch in batches]
        for piece, weights in zip(pieces, importance, strict=True):
            block = _Block(piece, model, solver, values, floats, weights)
            block.wanted = [piece.run(reference, each) for each in floats]
            mine = {name: usable[name] for name in piece.layers}
            log.append(
                {"block": ", ".join(piece.layers), **block.learn(mine, reference, generator)}
            )
            values = [piece.run(model, each) for each in values]
            floats = block.wanted
        end = _model_loss(everything, model, reference, batches, ends, solver)
        if not end <= start:
            for name, layer in usable.items():
                _restore(layer, before[name])
        log.append({"block": "model", "start": start, "learned": end, "kept": min(start, end)})
    return log


@dataclass
class _Block:
    """One piece of the model with the values that arrive there, batch by batch."""

    piece: Piece
    model: nn.Module
    solver: WideSolver
    values: list[Values]
    floats: list[Values]
    weights: list[Weights]
    wanted: list[Values] = None  # type: ignore[assignment]

    def learn(
        self, layers: Mapping[str, Layer], reference: nn.Module, generator: torch.Generator
    ) -> dict[str, float]:
        """Learns these layers and keeps what is better; losses at the start and at the end."""
        start = self.loss()
        before = {name: _state(layer) for name, layer in layers.items()}
        with _learning(layers, reference, self.solver) as roundings:
            self._descend(layers, roundings, start, generator)
        for name, (rounding, position) in roundings.items():
            _write(layers[name], committed(rounding, position))
        with _without_limits(layers):
            free = self.loss()
        for name, layer in layers.items():
            commit(name, layer)
        kept = self.loss()
        if not kept <= start:
            for name, layer in layers.items():
                _restore(layer, before[name])
        return {"start": start, "learned": free, "kept": min(kept, start)}

    def loss(self) -> float:
        """Mean loss of this piece over the batches, as the quantized layers are."""
        return sum(
            float(self._distance(at, self.piece.run(self.model, given)))
            for at, given in enumerate(self.values)
        ) / len(self.values)

    def _distance(self, at: int, found: Values) -> Tensor:
        return distance(self.piece, found, self.wanted[at], self.weights[at], self.solver)

    def _descend(
        self,
        layers: Mapping[str, Layer],
        roundings: Mapping[str, Any],
        start: float,
        generator: torch.Generator,
    ) -> None:
        """Loss as a share of the start's, plus the mean penalty: how large outputs are is nothing.

        At the published strength the two weigh alike.
        """
        solver, schedule = self.solver, self.solver.schedule
        modules = [rounding for rounding, _ in roundings.values()]
        learnable = [module.value for module in modules] if solver.variable != "scale" else []
        if solver.variable != "rounding":
            learnable += [
                layer.weight_quant.tensor_quant.scaling_impl.value
                for layer in layers.values()
                if not is_power_of_two(layer)
            ]
        if not learnable or start <= 0:
            return
        share = 1 / (PUBLISHED_STRENGTH * sum(module.value.numel() for module in modules))
        for parameter in self.model.parameters():
            parameter.requires_grad_(False)
        for parameter in learnable:
            parameter.requires_grad_(True)
        optimizer = schedule.built(learnable)
        with torch.enable_grad():
            for number in range(schedule.steps):
                at = number % len(self.values)
                given = self._mixed(at, generator)
                found = self.piece.run(self.model, given)
                loss = self._distance(at, found) / start
                if solver.variable != "scale":
                    loss = loss + share * schedule.penalty(modules, number).to(loss)
                loss.backward()
                schedule.step(optimizer, number)

    def _mixed(self, at: int, generator: torch.Generator) -> Values:
        """What arrives in one batch, a share of it as in the float model."""
        if self.solver.drop == 0:
            return self.values[at]
        return {
            name: _dropped(value, self.floats[at].get(name), self.solver.drop, generator)
            for name, value in self.values[at].items()
        }


def _dropped(value: Any, real: Any, share: float, generator: torch.Generator) -> Any:
    x, y = tensor_of(value), tensor_of(real)
    alike = isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape
    if not alike or not x.is_floating_point():
        return value
    chosen = torch.rand(x.shape, generator=generator).to(x.device) < share
    mixed = torch.where(chosen, y, x)
    return mixed if isinstance(value, Tensor) else value.set(value=mixed)


def distance(
    piece: Piece, found: Values, wanted: Values, weights: Weights, solver: WideSolver
) -> Tensor:
    """Loss of a piece's results: squared errors summed over channels, or the divergence.

    Means are over samples and positions, and a channel is an entry of the second axis.
    """
    total = torch.zeros(())
    pairs = zip(piece.given(found), piece.given(wanted), strict=True)
    for number, (mine, real) in enumerate(pairs):
        if solver.loss == "kl":
            target = real.log_softmax(-1)
            loss = F.kl_div(mine.log_softmax(-1), target, log_target=True, reduction="sum")
            total = total + (loss / max(target[..., 0].numel(), 1)).to(total.device)
        else:
            channels = mine.shape[1] if mine.ndim > 1 else 1
            error = (mine - real).square()
            if weights:
                error = weights[number] * error
            total = total + channels * error.mean().to(total.device)
    return total


def _weights(
    pieces: Sequence[Piece], reference: nn.Module, batches: Sequence[Batch], solver: WideSolver
) -> list[list[Weights]]:
    """What squared errors count, for every piece and batch; empty where all count alike."""
    if solver.loss != "fisher":
        return [[[] for _ in batches] for _ in pieces]
    generator = torch.Generator().manual_seed(solver.seed)
    return fisher_weights(pieces, reference, batches, generator)


def _model_loss(
    piece: Piece,
    model: nn.Module,
    reference: nn.Module,
    batches: Sequence[Batch],
    weights: list[Weights],
    solver: WideSolver,
) -> float:
    values = [arguments(model, piece, batch) for batch in batches]
    return sum(
        float(distance(piece, piece.run(model, each), piece.run(reference, each), mine, solver))
        for each, mine in zip(values, weights, strict=True)
    ) / len(values)


@contextmanager
def _learning(
    layers: Mapping[str, Layer], reference: nn.Module, solver: WideSolver
) -> Iterator[dict[str, tuple[Any, Tensor]]]:
    """Lets layers round as they learn; name → (the rounding, positions of the weights)."""
    found: dict[str, tuple[Any, Tensor]] = {}
    try:
        for name, layer in layers.items():
            quant = layer.weight_quant.tensor_quant
            integers, scale = integer_weight(name, layer)
            real = reference.get_parameter(f"{name}.weight").detach().to(layer.weight)
            position = beside(real / scale, integers.to(real))
            rounding = learned(position)
            found[name] = rounding, position
            quant.int_quant.float_to_int_impl = _Positioned(rounding, position)
        yield found
    finally:
        for name in found:
            layers[name].weight_quant.tensor_quant.int_quant.float_to_int_impl = RoundSte()


@contextmanager
def _without_limits(layers: Mapping[str, Layer]) -> Iterator[None]:
    """Context in which the weights of layers are not brought within their accumulators."""
    widths = {name: layer.weight_quant.accumulator_bit_width for name, layer in layers.items()}
    try:
        for layer in layers.values():
            layer.weight_quant.accumulator_bit_width = None
        yield
    finally:
        for name, layer in layers.items():
            layer.weight_quant.accumulator_bit_width = widths[name]


class _Positioned(nn.Module):
    """Rounds the positions that it has, whatever it is given: the weights that these stand for."""

    def __init__(self, rounding: Any, position: Tensor) -> None:
        super().__init__()
        self.rounding, self.position = rounding, position

    def forward(self, x: Tensor) -> Tensor:
        return self.rounding(self.position)


State = tuple[Tensor, Tensor]


def _state(layer: Layer) -> State:
    """Weights and the range parameter."""
    value = layer.weight_quant.tensor_quant.scaling_impl.value
    return layer.weight.detach().clone(), value.detach().clone()


def _restore(layer: Layer, state: State) -> None:
    layer.weight.data.copy_(state[0])
    layer.weight_quant.tensor_quant.scaling_impl.value.data.copy_(state[1])


def _write(layer: Layer, integers: Tensor) -> None:
    """Makes integers the weights of a layer, as they are, at its present scale."""
    quant = layer.weight_quant.tensor_quant
    scale = quant.scaling_impl(layer.weight, quant.int_scaling_impl(layer.weight_quant.bit_width()))
    layer.weight.data.copy_(integers * layer.weight_quant.per_weight(scale))


def commit(name: str, layer: Layer) -> None:
    """Writes the integers that the layer's quantizer makes of its weights, and checks their sums.

    Raises:
        NotProven: a sum does not fit the accumulator.
    """
    proxy = layer.weight_quant
    integers, _ = integer_weight(name, layer)
    rows = unroll_weight(layer, integers)
    width, found = proxy.accumulator_bit_width, proxy.input_range
    if width is not None:
        low, high = worst_case_sums(
            rows.flatten(0, 1).cpu().numpy(), found.low, found.high, proxy.accumulator_tile_size
        )
        if max(-int(low.min()), int(high.max())) > accumulator_limit(width):
            raise NotProven(
                f"the integers that layer '{name}' has learned do not fit its accumulator of "
                f"{width} bits; quantize it with another solver."
            )
    write_solution(name, layer, rows, current_scale(layer), None)
