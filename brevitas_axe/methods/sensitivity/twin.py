"""The float twin of a quantized model, in which single layers can be quantized.

A twin is a deep copy with every quantizer off. It can be pickled, differentiated twice and changed,
and the model itself is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor
from torch import Tensor, nn

from brevitas_axe.accumulator import InputRange
from brevitas_axe.formats import Format, minifloat
from brevitas_axe.methods.sensitivity.metrics import output_tensor
from brevitas_axe.model.apply.activations import activation_quantizers, set_bits
from brevitas_axe.model.apply.minifloats import give_inputs
from brevitas_axe.model.layers import Layer, find_layers, input_range
from brevitas_axe.model.minifloats import format_of, nearest_significant
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.running import evaluating, first_input, hooked, with_first_input


@dataclass(frozen=True, eq=False)
class InputGrid:
    """The integers that a layer's input is rounded to.

    Attributes:
        scale, zero_point: broadcast against the input.
        low, high: smallest and largest integer, zero point included.
        input_range: range of the integers minus the zero point, which enter the dot product.
        significant: bits that an integer may begin with, of a floating-point format on its finest
            grid; None for all integers.
    """

    scale: Tensor
    zero_point: Tensor
    low: int
    high: int
    input_range: InputRange
    significant: int | None = None

    @classmethod
    def of(cls, quantized: IntQuantTensor | FloatQuantTensor) -> InputGrid:
        if isinstance(quantized, FloatQuantTensor):
            known = minifloat(format_of(quantized))
            scale, ends = quantized.scale.detach() * float(known.step), known.input_range
            zero = torch.zeros_like(scale)
            return cls(scale, zero, ends.low, ends.high, ends, known.significant)
        bits, signed = int(quantized.bit_width.max()), bool(quantized.signed)
        low = -(2 ** (bits - 1)) if signed else 0
        scale, zero_point = quantized.scale.detach(), quantized.zero_point.detach()
        return cls(scale, zero_point, low, low + 2**bits - 1, input_range(quantized))

    def __call__(self, x: Tensor) -> Tensor:
        """The quantized input, dequantized."""
        numbers = nearest_significant(x / self.scale + self.zero_point, self.significant)
        integers = numbers.clamp(self.low, self.high)
        return (integers - self.zero_point) * self.scale


@dataclass(frozen=True, eq=False)
class Substitute:
    """Replacements of a layer's weights, input and bias in the twin; None for no replacement."""

    weight: Tensor | None = None
    grid: InputGrid | None = None
    bias: Tensor | None = None


def sharing_copy(twin: nn.Module, frozen: bool = False) -> nn.Module:
    """A copy for one piece of work that shares its parameters with the original.

    Args:
        twin: stays as it is.
        frozen: no parameter of the copy requires a gradient.
    """
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in twin.buffers()}
    for tensor in twin.parameters():
        shared[id(tensor)] = nn.Parameter(tensor.detach(), False) if frozen else tensor
    return copy.deepcopy(twin, shared)


def set_parameter(layer: Layer, key: str, value: Tensor) -> None:
    """Gives a layer of a copy a weight or bias of its own, to differentiate by."""
    # Not by setattr: Brevitas would then build the quantizer again.
    layer._parameters[key] = nn.Parameter(value)


def channel_axis(layer: Layer) -> int:
    """Axis of a layer's output, or of its gradient, along which the output channels lie."""
    return -1 if isinstance(layer, nn.Linear) else -len(layer.kernel_size) - 1


def layer_outputs(
    twin: nn.Module, layers: Mapping[str, Layer], batch: Batch
) -> tuple[Tensor, list[tuple[str, Tensor]]]:
    """One forward: the model's output, and (layer name, its output) of every call of the layers."""
    calls: list[tuple[str, Tensor]] = []

    def note(name: str, _: Layer, inputs: tuple, named: dict, output: Tensor) -> None:
        calls.append((name, output))

    args, kwargs = batch
    with hooked(layers, after=note):
        return output_tensor(twin(*args, **kwargs)), calls


def input_grids(
    model: nn.Module, args: tuple, kwargs: dict, bits: Format | None, exclude: tuple[str, ...] = ()
) -> dict[str, InputGrid | None]:
    """Grid of every layer's input when all activation quantizers have these bits.

    For a layer that is called twice, the first call counts.

    Args:
        model: a calibrated Brevitas model; not modified.
        args: positional arguments of one forward.
        kwargs: its keyword arguments.
        bits: of all activations, or their floating-point format; None leaves them as they are.
        exclude: names of layers to leave out.

    Returns:
        Layer name → grid, None where the input is not quantized to integers. Layers that the
        forward does not call are left out.
    """
    scratch = copy.deepcopy(model)
    if bits is not None:
        for proxies in activation_quantizers(scratch).values():
            if isinstance(bits, str):
                give_inputs(scratch, proxies, bits)
            else:
                set_bits(proxies, bits)
    grids: dict[str, InputGrid | None] = {}

    def note(name: str, layer: Layer, inputs: tuple, named: dict) -> None:
        quantized = layer.input_quant(first_input(inputs, named))
        known = isinstance(quantized, IntQuantTensor | FloatQuantTensor)
        grids.setdefault(name, InputGrid.of(quantized) if known else None)

    layers = find_layers(scratch, exclude)
    for layer in layers.values():
        if hasattr(layer.weight_quant, "set_input_range"):
            layer.weight_quant.set_input_range(None)
    with hooked(layers, before=note), evaluating(scratch), torch.no_grad():
        scratch(*args, **kwargs)
    return grids


@contextmanager
def substituted(twin: nn.Module, parts: Mapping[str, Substitute]) -> Iterator[None]:
    """Context in which some layers are quantized; afterwards they are float again."""
    modules: Any = dict(twin.named_modules())
    grids = {name: part.grid for name, part in parts.items() if part.grid is not None}

    def round_input(name: str, _: Layer, inputs: tuple, named: dict) -> Batch:
        return with_first_input(inputs, named, grids[name](first_input(inputs, named)))

    with ExitStack() as stack:
        stack.enter_context(hooked({name: modules[name] for name in grids}, before=round_input))
        for name, part in parts.items():
            layer = cast(Layer, modules[name])
            for key in ("weight", "bias"):
                value = getattr(part, key)
                if value is not None:
                    stack.callback(layer._parameters.__setitem__, key, getattr(layer, key))
                    set_parameter(layer, key, value)
        yield
