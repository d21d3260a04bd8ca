"""Where a `Change` can be made: the tensors that layers read, found by running the module.

Whether a module gives a tensor is found by trying. In a float64 copy the module's parameters are
changed so that it gives (x − shift) / scale with random numbers; layers at which exactly that
arrives get the old x instead; and if the output is what it was, nothing else read the tensor. So a
norm before three layers is found, a value projection behind whose output only averages follow, and
a norm that a residual sum reads as well is not.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves, tree_map

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.methods.transforms.fold import divide, is_reader, takes_shift
from brevitas_axe.methods.transforms.protocol import Site
from brevitas_axe.model.layers import Layer
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.running import (
    evaluating,
    first_input,
    float_tensors,
    flow,
    hooked,
    with_first_input,
)
from brevitas_axe.model.sampling import sampled

# Size of the sample on which a change is judged, over all batches.
SAMPLE = 2**10
# Samples of the call that shows who gives and reads.
_FEW = 4
# Relative to the largest number. Parts of a model may compute in float32 even in a float64 copy.
TOLERANCE = 1e-5


@torch.no_grad()
def find_sites(
    module: nn.Module, calls: Sequence[Batch], exclude: Sequence[str] = ()
) -> tuple[Site, ...]:
    """Every tensor that linear layers or convolutions read, in the order of execution.

    Args:
        module: a float module; not modified.
        calls: arguments of its forward, batch by batch; the first shows who gives and reads.
        exclude: names of layers that are neither readers nor givers.

    Raises:
        UnsupportedLayer: the module does not run in float64.
    """
    layers = {
        name: cast(Layer, part)
        for name, part in module.named_modules()
        if name and name not in exclude and is_reader(part)
    }
    probe = _Probe(module, list(layers), calls[0])
    givers = probe.givers(exclude)
    seen = _statistics(module, {name: layers[name] for name in probe.inputs}, calls)
    sites: dict[str, Site] = {}
    for name in probe.inputs:
        if any(name in site.readers for site in sites.values()):
            continue
        found = next((g for g in givers if name in g.readers), None)
        if found is None:
            same = [n for n in probe.same_input(name) if not any(n in g.readers for g in givers)]
            found = _Giver(None, tuple(same), False, False)
        sites[name] = Site(
            readers=found.readers,
            giver=found.name,
            shifts=found.shifts,
            through_softmax=found.averaged,
            padded=any(_is_padded(layers[reader]) for reader in found.readers),
            weights=tuple(reader_weight(layers[reader]) for reader in found.readers),
            **seen[name],
        )
    return tuple(sites.values())


def float64_copy(module: nn.Module) -> nn.Module:
    """A copy in evaluation mode that computes in float64."""
    return copy.deepcopy(module).eval().double()


def float64_outputs(twin: nn.Module, call: Batch) -> list[Tensor]:
    """What a copy of `float64_copy` returns.

    Raises:
        UnsupportedLayer: it does not run, or returns no floating-point tensor.
    """
    args, kwargs = in_float64(call)
    try:
        found = float_tensors(twin(*args, **kwargs))
    except Exception as error:  # a forward may require its own precision, with any error
        raise UnsupportedLayer(
            f"{type(twin).__name__} does not run in float64 ({error}), so changes of it cannot be "
            "checked; leave this transform out."
        ) from error
    if not found:
        raise UnsupportedLayer(
            f"{type(twin).__name__} returns no floating-point tensor, so changes of it cannot be "
            "checked; leave this transform out."
        )
    return found


def few_samples(module: nn.Module, call: Batch) -> Batch:
    """A call with its first samples alone, where it reaches every layer that all of them reach.

    What gives a tensor and what reads it does not depend on how many samples there are.
    """
    tensors = [x for x in tree_leaves(call) if isinstance(x, Tensor) and x.dim() > 1]
    samples = len(tensors[0]) if tensors else 0
    if samples <= _FEW:
        return call

    def cut(x: Any) -> Any:
        mine = isinstance(x, Tensor) and x.dim() > 1 and len(x) == samples
        return x[:_FEW] if mine else x

    fewer = tree_map(cut, call)
    try:
        return fewer if _called(module, fewer) == _called(module, call) else call
    except Exception:  # a forward may require its batch size, with any error
        return call


def _called(module: nn.Module, call: Batch) -> Counter[str]:
    """How often each module is called."""
    met: Counter[str] = Counter()

    def note(name: str, *_: Any) -> None:
        met[name] += 1

    args, kwargs = call
    with hooked(dict(module.named_modules()), before=note), evaluating(module):
        module(*args, **kwargs)
    return met


def in_float64(call: Batch) -> Batch:
    """The arguments of a call with every floating-point tensor in float64."""

    def wide(x: Any) -> Any:
        return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x

    return tree_map(wide, call)


def agree(mine: Sequence[Tensor], theirs: Sequence[Tensor], tolerance: float = TOLERANCE) -> bool:
    """Whether tensors are equal up to rounding, relative to the largest number of each."""
    if [x.shape for x in mine] != [x.shape for x in theirs]:
        return False
    pairs = [(x, y) for x, y in zip(mine, theirs, strict=True) if x.numel()]
    return all(float((x - y).abs().max()) <= tolerance * float(y.abs().max()) for x, y in pairs)


def channel_axis(layer: Layer) -> int:
    """Dimension of a layer's input and output along which its channels lie."""
    return -1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1


def reader_weight(layer: Layer) -> Tensor:
    """A layer's weight as [rows, taps, C]; zero where a row does not read a channel."""
    weight = layer.weight.detach()
    if isinstance(layer, nn.Linear):
        return weight.unsqueeze(1)
    rows, inside = weight.shape[:2]
    taps = weight.flatten(2).transpose(1, 2)
    whole = weight.new_zeros(rows, taps.shape[1], layer.in_channels)
    for group, part in enumerate(taps.chunk(layer.groups)):
        first = group * len(part)
        whole[first : first + len(part), :, group * inside : (group + 1) * inside] = part
    return whole


def _channels(layer: Layer) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _is_padded(layer: Layer) -> bool:
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    return layer.padding == "same" or any(pad != 0 for pad in layer.padding if pad != "valid")


def _is_norm(module: nn.Module) -> bool:
    """Norms with a weight per channel, also those of other packages that look like RMSNorm."""
    if isinstance(module, (nn.LayerNorm, _BatchNorm)):
        return module.weight is not None and module.weight.dim() == 1
    own = dict(module.named_parameters())
    return list(own) == ["weight"] and own["weight"].dim() == 1


@dataclass(frozen=True)
class _Giver:
    """A module that gives what some layers read, and nothing else reads."""

    name: str | None
    readers: tuple[str, ...]
    shifts: bool
    averaged: bool


class _Probe:
    """A float64 copy of a module, in which givers are found by trying."""

    def __init__(self, module: nn.Module, layers: Sequence[str], call: Batch) -> None:
        self._twin = float64_copy(module)
        self._call = in_float64(few_samples(module, call))
        modules = {name: cast(Layer, part) for name, part in self._twin.named_modules()}
        self._layers = {name: modules[name] for name in layers}
        self._norms = {name: part for name, part in modules.items() if name and _is_norm(part)}
        self.inputs: dict[str, list[Tensor]] = {}
        self._given: dict[str, Tensor] = {}

        def note(name: str, _: Layer, args: tuple, kwargs: dict) -> None:
            self.inputs.setdefault(name, []).append(first_input(args, kwargs).clone())

        def keep(name: str, _: Layer, args: tuple, kwargs: dict, output: Any) -> None:
            if isinstance(output, Tensor):
                self._given[name] = output.clone()

        watched = {**self._layers, **self._norms}
        with hooked(self._layers, before=note), hooked(watched, after=keep):
            self._wanted = float64_outputs(self._twin, self._call)
        self._flow = flow(self._twin, self._layers, self._call)

    def same_input(self, name: str) -> tuple[str, ...]:
        """Layers that read the same tensor."""
        return self._flow.same_input(name)

    def givers(self, exclude: Sequence[str]) -> list[_Giver]:
        """The nearest giver of every tensor that has one, last tensor first."""
        found: list[_Giver] = []
        modules = {**self._layers, **self._norms}
        for name in reversed(self._given):
            if name in exclude:
                continue
            both = takes_shift(modules[name])
            giver = (both and self._tried(name, modules[name], True)) or self._tried(
                name, modules[name], False
            )
            taken = {reader for other in found for reader in other.readers}
            if giver and not taken & set(giver.readers):
                found.append(giver)
        return found

    def _tried(self, name: str, module: Layer, shifts: bool) -> _Giver | None:
        count = module.weight.shape[0]
        generator = torch.Generator().manual_seed(0)
        scale = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
        shift = torch.randn(count, generator=generator, dtype=torch.float64) * shifts
        scale, shift = scale.to(module.weight.device), shift.to(module.weight.device)
        arrived: dict[str, list[bool]] = {}

        def undo(reader: str, layer: Layer, args: tuple, kwargs: dict) -> Batch | None:
            calls = arrived.setdefault(reader, [])
            before = self.inputs[reader][len(calls) :][:1]
            x = first_input(args, kwargs)
            calls.append(False)
            if _channels(layer) != count or not before or before[0].shape != x.shape:
                return None
            shape = (-1, *[1] * (-channel_axis(layer) - 1))
            calls[-1] = agree([x], [(before[0] - shift.view(shape)) / scale.view(shape)])
            return with_first_input(args, kwargs, before[0]) if calls[-1] else None

        with _parameters_of(module), hooked(self._layers, before=undo):
            divide(module, scale, shift)
            outputs = float64_outputs(self._twin, self._call)
        readers = tuple(reader for reader, calls in arrived.items() if all(calls))
        partly = any(any(calls) and not all(calls) for calls in arrived.values())
        if not readers or partly or not agree(outputs, self._wanted):
            return None
        read = self.inputs[readers[0]][0].flatten().sort().values
        given = self._given[name].flatten().sort().values
        return _Giver(name, readers, shifts, shifts and not agree([read], [given]))


@contextmanager
def _parameters_of(module: nn.Module) -> Iterator[None]:
    """Context after which a module has its parameters back."""
    kept = dict(module._parameters)
    try:
        yield
    finally:
        module._parameters.clear()
        module._parameters.update(kept)


def _statistics(
    module: nn.Module, layers: Mapping[str, Layer], calls: Sequence[Batch]
) -> dict[str, dict[str, Tensor]]:
    """Layer → low, high and sample of its input."""
    found: dict[str, dict[str, Tensor]] = {}
    most = max(SAMPLE // len(calls), 1)

    def note(name: str, layer: Layer, args: tuple, kwargs: dict) -> None:
        x = first_input(args, kwargs).detach().movedim(channel_axis(layer), -1)
        x = x.reshape(-1, x.shape[-1])
        if len(x) == 0:  # an expert without tokens
            return
        sample = sampled(x, -(-len(x) // most))
        new = {"low": x.amin(0), "high": x.amax(0), "sample": sample}
        old = found.get(name)
        if old is not None:
            new["low"] = torch.minimum(old["low"], new["low"])
            new["high"] = torch.maximum(old["high"], new["high"])
            new["sample"] = torch.cat([old["sample"], new["sample"]])
        found[name] = new

    with hooked(layers, before=note), evaluating(module):
        for args, kwargs in calls:
            module(*args, **kwargs)
    return found
