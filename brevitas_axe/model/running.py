"""Running a model and watching: what gives and what reads each tensor, found by hooks."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.graph.calibrate import QuantizationStatusManager
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from brevitas_axe.accumulator import InputRange
from brevitas_axe.model.layers import Layer, input_range, is_accumulator_aware


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every module's own mode again afterwards, whatever happens."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in training.items():
            module.training = mode


def first_input(args: tuple, kwargs: dict) -> Any:
    """What a layer multiplies, of the arguments of its call."""
    return args[0] if args else next(iter(kwargs.values()))


def observe_inputs(
    model: nn.Module, layers: dict[str, Layer], args: tuple, kwargs: dict | None = None
) -> dict[str, list[InputRange | None]]:
    """Runs one forward in evaluation mode and notes what arrives at every call of every layer.

    A2Q and A2Q+ quantizers remember their input from it, so that `integer_weight` needs none.

    Args:
        model: holds the layers.
        layers: those of interest, as `find_layers` gives them.
        args: positional arguments of the forward.
        kwargs: keyword arguments of the forward.

    Returns:
        Layer name → one range per call, None where the input was not quantized to integers. In
        the order of first execution; layers that were not called are absent.
    """
    calls: dict[str, list[InputRange | None]] = {}

    def note(name: str):
        def hook(layer: Layer, args: tuple, kwargs: dict) -> None:
            quantized = layer.input_quant(first_input(args, kwargs))
            known = isinstance(quantized, IntQuantTensor)
            calls.setdefault(name, []).append(input_range(quantized, layer) if known else None)
            if known and is_accumulator_aware(layer):
                layer.weight_quant.cache_inference_quant_act = True

        return hook

    handles = [
        layer.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with evaluating(model), torch.no_grad():
            model(*args, **(kwargs or {}))
    finally:
        for handle in handles:
            handle.remove()
    return calls


def same_input(
    model: nn.Module, layers: dict[str, Layer], args: tuple, kwargs: dict
) -> dict[str, tuple[str, ...]]:
    """Layers that read the same tensor, such as query, key and value: none waits for another.

    Args:
        model: holds the layers.
        layers: those of interest.
        args, kwargs: of one forward.

    Returns:
        Layer name → it and those with its input, in the order of execution. A layer that the
        forward calls several times or never is absent.
    """
    calls: dict[str, list[tuple[int, int]]] = {}
    kept: list[Any] = []  # an object that is gone may lend its identity to another

    def note(name: str):
        def hook(_: nn.Module, args: tuple, kwargs: dict) -> None:
            x = first_input(args, kwargs)
            kept.append(x)
            # A tensor that was changed in place between two layers is not the same.
            calls.setdefault(name, []).append((id(x), dequantized(x)._version))

        return hook

    handles = [
        layer.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, layer in layers.items()
    ]
    try:
        with evaluating(model), torch.inference_mode(False), torch.no_grad():
            model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    readers: dict[tuple[int, int], list[str]] = {}
    for name, found in calls.items():
        if len(found) == 1:
            readers.setdefault(found[0], []).append(name)
    return {name: tuple(names) for names in readers.values() for name in names}


def dequantized(layer_input: Any) -> Tensor:
    """Plain tensor of what a layer receives."""
    return layer_input.value if isinstance(layer_input, IntQuantTensor) else layer_input


def norm_pairs(model: nn.Module, layers: dict[str, Layer], args: tuple) -> list[tuple[str, str]]:
    """(layer, norm) where a norm reads what a layer gave, found by running the model."""
    given: dict[int, tuple[str, Tensor]] = {}  # keeps the tensors, so that an id stays theirs
    pairs: list[tuple[str, str]] = []
    handles = []

    def leave(name: str):
        def hook(_module: nn.Module, _args: tuple, output: Any) -> None:
            given[id(tensor_of(output))] = name, tensor_of(output)

        return hook

    def enter(name: str):
        def hook(_module: nn.Module, args: tuple) -> None:
            if id(tensor_of(args[0])) in given:
                pairs.append((given[id(tensor_of(args[0]))][0], name))

        return hook

    for name, module in model.named_modules():
        if name in layers:
            handles.append(module.register_forward_hook(leave(name)))
        elif isinstance(module, _BatchNorm):
            handles.append(module.register_forward_pre_hook(enter(name)))
    try:
        model(*args)
    finally:
        for handle in handles:
            handle.remove()
    return pairs


def tensor_of(output: Any) -> Any:
    """The tensor inside a QuantTensor, or what is there as it is."""
    return getattr(output, "value", output)


def float_twin(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode with every quantizer off."""
    twin = copy.deepcopy(model).eval()
    QuantizationStatusManager.disable_param_quantization(twin, False)
    QuantizationStatusManager.disable_act_quantization(twin, False)
    QuantizationStatusManager.disable_return_quant_tensor(twin)
    for module in twin.modules():
        part: Any = module
        if hasattr(module, "quant_injector"):
            part.quant_injector = None  # a class made at run time, which cannot be pickled
        if isinstance(module, torch.fx.GraphModule) or hasattr(module, "recompile"):
            for node in part.graph.nodes:
                node.type = None  # annotations as text break torch's own pickling
            part.recompile()
    return twin
