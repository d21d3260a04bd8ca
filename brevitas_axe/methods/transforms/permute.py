"""Hidden channels in an order in which the tiles of the next layer share their load; ours.

A tile's accumulator holds the l1 norm of its weights. Where channels with large weights lie in one
tile, its weights have to shrink while another tile has room. The channels between two linear layers
have no order of their own, if what lies between works channel by channel, as an activation function
or a gate does: their order is that of the rows of the first layer, and it may be another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from brevitas_axe.accumulator import accumulator_limit
from brevitas_axe.methods.transforms.protocol import EQUALIZING
from brevitas_axe.methods.transforms.sites import (
    SAMPLE,
    agree,
    few_samples,
    float64_copy,
    float64_outputs,
    in_float64,
)
from brevitas_axe.model.l1_ball import project_on_ball
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.running import first_input, hooked, with_first_input
from brevitas_axe.plan import LayerPrecision
from brevitas_axe.registry import Facts

# Multiples of the scale at which weights are brought within the budget; each row has the best.
_SCALES = (1.0, 1.4, 2.0, 2.8, 4.0, 5.6, 8.0)
# Relative gain that an order must exceed.
_GAIN = 1e-3


@dataclass(frozen=True)
class Stream:
    """Channels between linear layers that have no order of their own.

    Attributes:
        givers: linear layers, one output for every channel.
        readers: linear layers, one input for every channel.
        sample: [n, C] float64, vectors that the first reader reads.
    """

    givers: tuple[str, ...]
    readers: tuple[str, ...]
    sample: Tensor


@dataclass(frozen=True)
class Permute:
    """Orders channels so that the tiles behind them share the l1 norm of their weights.

    Channels go to the tiles one after the other, those with the largest weights first, each to the
    tile with the least load that has a place left. Kept where the error of the readers, with their
    weights within the budget, is less than in the order that was there; weights with a scale per
    tile are judged as those with a scale per row. Channels of several heads keep their order.

    Attributes:
        exclude: names of layers to leave alone.
    """

    exclude: tuple[str, ...] = ()
    stage = EQUALIZING
    facts = Facts(
        kind="–",
        granularity="channel",
        signal="weights; output error within the budget",
        export="finn",
        source="ours",
    )

    @torch.no_grad()
    def __call__(
        self, module: nn.Module, calls: Sequence[Batch], widths: LayerPrecision
    ) -> tuple[str, ...]:
        """See `Transform`; without a tile and an accumulator there is nothing to share."""
        bits = (widths.weight_bits, widths.input_bits)
        if widths.tile is None or widths.accumulator is None or None in bits:
            return ()
        for stream in find_streams(module, calls[0], self.exclude):
            if len(stream.sample[0]) <= widths.tile:
                continue
            layers = [module.get_submodule(name) for name in stream.readers]
            weights = [layer.get_parameter("weight").detach().double() for layer in layers]
            order = balanced(weights, widths.tile)
            before = sum(budgeted_error(stream.sample, w, widths) for w in weights)
            after = sum(
                budgeted_error(stream.sample[:, order], w[:, order], widths) for w in weights
            )
            if after < before * (1 - _GAIN):
                reorder(module, stream, order)
        return ()


def balanced(weights: Sequence[Tensor], tile: int) -> Tensor:
    """int64 [C]: the order of channels in which tiles have nearly equal loads.

    A channel's load is the sum of its weights' magnitudes, those of a row in units of its largest.

    Args:
        weights: [rows, C] of every reader.
        tile: channels of a tile; the last one may be short.
    """
    rows = torch.cat([weight.abs() for weight in weights])
    load = (rows / rows.amax(1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)).sum(0)
    channels = len(load)
    places = [min(tile, channels - start) for start in range(0, channels, tile)]
    members: list[list[int]] = [[] for _ in places]
    total = [0.0 for _ in places]
    for channel in load.argsort(descending=True, stable=True).tolist():
        open_tiles = [t for t, place in enumerate(places) if len(members[t]) < place]
        # A short tile is full when it has its share of the load, as the others are.
        best = min(open_tiles, key=lambda t: total[t] / places[t])
        members[best].append(channel)
        total[best] += float(load[channel])
    return torch.tensor([channel for part in members for channel in sorted(part)])


def budgeted_error(x: Tensor, weight: Tensor, widths: LayerPrecision) -> float:
    """Variance of a layer's errors with weights rounded within the budget of every tile.

    Args:
        x: [n, C], what it reads.
        weight: [rows, C].
        widths: bits of weights and inputs, accumulator and tile.
    """
    assert widths.accumulator is not None
    assert widths.tile is not None
    most = max(2 ** ((widths.weight_bits or 1) - 1) - 1, 1)
    radius = accumulator_limit(widths.accumulator) / 2 ** ((widths.input_bits or 1) - 1)
    largest = weight.abs().amax(1, keepdim=True).clamp_min(torch.finfo(weight.dtype).tiny)
    ball = weight.new_full((1, 1), radius)
    least = weight.new_full((len(weight),), torch.inf)
    for factor in _SCALES:
        step = factor * largest / most
        parts = [project_on_ball(part, ball) for part in (weight / step).split(widths.tile, 1)]
        wrong = x @ (torch.cat(parts, 1).round() * step - weight).mT
        least = torch.minimum(least, (wrong - wrong.mean(0)).square().sum(0))
    return float(least.sum())


@torch.no_grad()
def find_streams(module: nn.Module, call: Batch, exclude: Sequence[str] = ()) -> Iterator[Stream]:
    """Channels whose order is free, found by trying in a float64 copy.

    The rows of one linear layer, or of two that read the same tensor, are put in a random order.
    Where linear layers then read exactly these channels in that order, and everything is as before
    once they get the old order, nothing else depends on it.

    Args:
        module: a float module; not modified until the next stream is asked for.
        call: arguments of its forward.
        exclude: names of layers that are neither givers nor readers.
    """
    twin = float64_copy(module)
    call = in_float64(few_samples(module, call))
    layers = {
        name: part
        for name, part in twin.named_modules()
        if type(part) is nn.Linear and name not in exclude
    }
    inputs: dict[str, list[Tensor]] = {}

    def note(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.setdefault(name, []).append(first_input(args, kwargs).clone())

    with hooked(layers, before=note):
        wanted = float64_outputs(twin, call)
    done: set[str] = set()
    for reader in inputs:
        if reader in done:
            continue
        size = layers[reader].in_features
        rows = [n for n in inputs if layers[n].out_features == size and n != reader]
        pairs = [p for p in combinations(rows, 2) if _same(inputs[p[0]], inputs[p[1]])]
        for givers in [*((name,) for name in rows), *pairs]:
            readers = _tried(twin, layers, inputs, call, wanted, givers)
            if reader in readers and not done & set(readers):
                done |= set(readers)
                sample = torch.cat([x.reshape(-1, size) for x in inputs[reader]])[:SAMPLE]
                yield Stream(givers, readers, sample)
                break


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def _tried(
    twin: nn.Module,
    layers: dict[str, nn.Linear],
    inputs: dict[str, list[Tensor]],
    call: Batch,
    wanted: Sequence[Tensor],
    givers: tuple[str, ...],
) -> tuple[str, ...]:
    """The layers that read what these give, if nothing else does; else none."""
    size = layers[givers[0]].out_features
    order = torch.randperm(size, generator=torch.Generator().manual_seed(0))
    arrived: dict[str, list[bool]] = {}

    def undo(name: str, layer: nn.Module, args: tuple, kwargs: dict) -> Any:
        calls = arrived.setdefault(name, [])
        before = inputs.get(name, [])[len(calls) :][:1]
        x = first_input(args, kwargs)
        fits = layers[name].in_features == size and before and before[0].shape == x.shape
        calls.append(bool(fits) and torch.equal(x, before[0][..., order]))
        return with_first_input(args, kwargs, before[0]) if calls[-1] else None

    with _reordered([layers[name] for name in givers], order), hooked(layers, before=undo):
        outputs = float64_outputs(twin, call)
    readers = tuple(name for name, calls in arrived.items() if all(calls))
    partly = any(any(calls) and not all(calls) for calls in arrived.values())
    return () if partly or not agree(outputs, wanted) else readers


@contextmanager
def _reordered(givers: Sequence[nn.Linear], order: Tensor) -> Iterator[None]:
    """Context in which the outputs of layers have another order."""
    kept = [dict(layer._parameters) for layer in givers]
    try:
        for layer in givers:
            _reorder_outputs(layer, order)
        yield
    finally:
        for layer, before in zip(givers, kept, strict=True):
            layer._parameters.update(before)


def reorder(module: nn.Module, stream: Stream, order: Tensor) -> None:
    """Puts the channels of a stream in another order, in place; parameters become new ones.

    Args:
        module: contains the layers.
        stream: as `find_streams` found it there.
        order: int64 [C], the channel at each place.
    """
    for name in stream.givers:
        _reorder_outputs(module.get_submodule(name), order)
    for name in stream.readers:
        layer = module.get_submodule(name)
        _replace(layer, "weight", layer.get_parameter("weight").detach()[:, order])


def _reorder_outputs(layer: nn.Module, order: Tensor) -> None:
    for key, value in dict(layer._parameters).items():
        if value is not None:
            _replace(layer, key, value.detach()[order])


def _replace(layer: nn.Module, key: str, value: Tensor) -> None:
    old = layer.get_parameter(key)
    setattr(layer, key, nn.Parameter(value.contiguous(), requires_grad=old.requires_grad))


permute = Permute()
