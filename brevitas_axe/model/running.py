"""Runs a model under observation: hooks find the givers and readers of each tensor."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from brevitas import config
from brevitas.graph.calibrate import QuantizationStatusManager
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor, QuantTensor
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import AxeError, InvalidOption, NotEnoughMemory, UnsupportedLayer
from brevitas_axe.model.layers import Layer, input_range, is_accumulator_aware

# Positional and keyword arguments of a forward.
Batch = tuple[tuple, dict]
# A GraphModule or Node, of torch.fx or of Brevitas's copy of it; arguments of nodes are anything.
Graph = Any
# Name, module and arguments of a call; may return other arguments.
Before = Callable[[str, Layer, tuple, dict], Any]
# The same with the output at the end; may return another output.
After = Callable[[str, Layer, tuple, dict, Any], Any]


@contextmanager
def same_gradients(module: nn.Module) -> Iterator[None]:
    """Every parameter is learned afterwards if it was before."""
    learned = {parameter: parameter.requires_grad for parameter in module.parameters()}
    try:
        yield
    finally:
        for parameter, before in learned.items():
            parameter.requires_grad_(before)


@contextmanager
def all_learned(module: nn.Module) -> Iterator[None]:
    """Context in which every parameter is learned."""
    with same_gradients(module):
        for parameter in module.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        yield


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and every module's own mode again afterwards, whatever happens.

    Modules that were made meanwhile get the model's.
    """
    training, usual = {module: module.training for module in model.modules()}, model.training
    model.eval()
    try:
        yield
    finally:
        for module in {**training, **dict.fromkeys(model.modules())}:
            module.training = training.get(module, usual)


def check_runs(model: nn.Module, batch: Batch) -> None:
    """Runs one forward, so that faults of model or data are reported as such."""
    args, kwargs = batch
    try:
        with torch.no_grad():
            model(*args, **kwargs)
    except AxeError:
        raise
    except Exception as error:
        if ran_out_of_memory(error):
            raise NotEnoughMemory(
                "memory ran out in one forward on calibration batch 0; give smaller batches."
            ) from error
        reason = next(iter(str(error).splitlines()), "")
        raise InvalidOption(
            f"the model fails on calibration batch 0 ({type(error).__name__}: {reason}); give "
            "batches as its forward takes them."
        ) from error


def ran_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out. On the CPU torch raises a RuntimeError, told by its text."""
    kinds = MemoryError | torch.OutOfMemoryError | NotEnoughMemory
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


@contextmanager
def loading_in_place() -> Iterator[None]:
    """Context in which loading a state keeps the objects of every quantizer.

    Otherwise Brevitas builds quantizers again, and those that residual branches share would each
    get scales of their own.
    """
    before = config.REINIT_ON_STATE_DICT_LOAD
    config.REINIT_ON_STATE_DICT_LOAD = False
    try:
        yield
    finally:
        config.REINIT_ON_STATE_DICT_LOAD = before


def shares_on_load(model: nn.Module) -> nn.Module:
    """The model; from now on its load_state_dict keeps shared quantizers shared."""
    model.register_load_state_dict_pre_hook(_before_load)
    model.register_load_state_dict_post_hook(_after_load)
    return model


def _before_load(model: Any, state: dict, *_: Any) -> None:
    """Keeps Brevitas from building quantizers again."""
    model.builds_anew = config.REINIT_ON_STATE_DICT_LOAD
    config.REINIT_ON_STATE_DICT_LOAD = False


def _after_load(model: Any, keys: Any) -> None:
    """Ends what `_before_load` began."""
    config.REINIT_ON_STATE_DICT_LOAD = model.builds_anew


@contextmanager
def hooked(
    modules: Mapping[str, nn.Module], before: Before | None = None, after: After | None = None
) -> Iterator[None]:
    """Context in which functions run before and after every call of some modules.

    Args:
        modules: by name; a module with two names is observed under both.
        before: function(name, module, args, kwargs), in front of a call. Where it returns
            (args, kwargs), the module gets these instead.
        after: function(name, module, args, kwargs, output), behind it. Its result replaces
            the output, unless it is None.
    """
    with ExitStack() as stack:
        for name, module in modules.items():
            if before is not None:
                hook = _bound(before, name)
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
            if after is not None:
                handle = module.register_forward_hook(_bound(after, name), with_kwargs=True)
                stack.callback(handle.remove)
        yield


def _bound(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    # Not `functools.partial`: a copy of the module would also copy the object of the function.
    def hook(*call: Any) -> Any:
        return function(name, *call)

    return hook


def first_input(args: tuple, kwargs: dict) -> Any:
    """The activation among a layer's call arguments."""
    return args[0] if args else next(iter(kwargs.values()))


def with_first_input(args: tuple, kwargs: dict, value: Any) -> Batch:
    """The arguments of a call with another first input."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, next(iter(kwargs)): value}


def dequantized(layer_input: Any) -> Tensor:
    """A layer's input as a plain tensor."""
    # By its class, as what stands for a tensor while a graph is traced has every attribute.
    quantized = isinstance(layer_input, IntQuantTensor | FloatQuantTensor)
    return layer_input.value if quantized else layer_input


def tensor_of(output: Any) -> Any:
    """The tensor inside a QuantTensor; anything else unchanged."""
    return getattr(output, "value", output)


def float_tensors(output: Any) -> list[Tensor]:
    """All floating-point tensors in what a model returns, quantized ones by their values."""
    leaves = tree_leaves(output, is_leaf=lambda part: isinstance(part, QuantTensor))
    tensors = (tensor_of(leaf) for leaf in leaves)
    return [t for t in tensors if isinstance(t, Tensor) and t.is_floating_point()]


def observe_inputs(
    model: nn.Module, layers: dict[str, Layer], args: tuple, kwargs: dict | None = None
) -> dict[str, list[InputRange | None]]:
    """Runs one forward in evaluation mode and notes the input range at every call of every layer.

    A2Q and A2Q+ quantizers remember their input from it, which `integer_weight` relies on.

    Args:
        model: contains the layers.
        layers: those of interest, as `find_layers` gives them.
        args: positional arguments of the forward.
        kwargs: keyword arguments of the forward.

    Returns:
        Layer name → one range per call, None where the input was not quantized to integers. In
        the order of first execution; layers that were not called are absent.
    """
    calls: dict[str, list[InputRange | None]] = {}

    def note(name: str, layer: Layer, args: tuple, kwargs: dict) -> None:
        quantized = layer.input_quant(first_input(args, kwargs))
        known = isinstance(quantized, IntQuantTensor | FloatQuantTensor)
        calls.setdefault(name, []).append(input_range(quantized, layer) if known else None)
        if known and is_accumulator_aware(layer):
            layer.weight_quant.cache_inference_quant_act = True

    with hooked(layers, before=note), evaluating(model), torch.no_grad():
        model(*args, **(kwargs or {}))
    return calls


def check_all_called(model: nn.Module, layers: dict[str, Layer], batches: Sequence[Batch]) -> None:
    """Refuses, before any work, layers that no calibration batch runs through.

    Raises:
        UnsupportedLayer: names the first of them.
    """
    met: set[str] = set()
    for args, kwargs in batches:
        met |= set(observe_inputs(model, layers, args, kwargs))
        if len(met) == len(layers):
            return
    name = next(name for name in layers if name not in met)
    raise UnsupportedLayer(
        f"no calibration batch runs through layer '{name}'; give batches that use it, or "
        f"exclude it by name, exclude=('{name}',)."
    )


@dataclass(frozen=True)
class Flow:
    """Givers and readers of the same tensors in one forward, as `flow` finds them.

    A tensor is the same if it is the same object and was not changed in place in between. So a
    view, a sum or a reshape is another tensor.

    Attributes:
        givers: module → the modules whose output it read, call by call; None where no observed
            module gave it.
        same: module → itself and those that read the same tensor, in the order of execution;
            modules that were called several times, or never, are absent.
    """

    givers: Mapping[str, tuple[str | None, ...]]
    same: Mapping[str, tuple[str, ...]]

    def giver(self, name: str) -> str | None:
        """The only module whose output this one read, over all its calls; None if there is none.

        A module that was not called has no giver.
        """
        found = set(self.givers.get(name, (None,)))
        return found.pop() if len(found) == 1 else None

    def readers(self, name: str) -> tuple[str, ...]:
        """Modules that read the output of this one in at least one of their calls."""
        return tuple(reader for reader, givers in self.givers.items() if name in givers)

    def same_input(self, name: str) -> tuple[str, ...]:
        """A module and all others that read the same tensor, such as query, key and value.

        Only the module itself where it was called several times, or never.
        """
        return self.same.get(name, (name,))


def flow(model: nn.Module, modules: Mapping[str, nn.Module], batch: Batch) -> Flow:
    """Runs one forward without gradients and notes which module reads whose output.

    Args:
        model: contains the modules.
        modules: those of interest, by name.
        batch: arguments of the forward.
    """
    given: dict[tuple[int, int], str] = {}
    read: dict[str, list[tuple[int, int]]] = {}
    givers: dict[str, list[str | None]] = {}
    kept: list[Any] = []  # keeps objects alive: a freed one may pass its id on to another

    def identity(x: Any) -> tuple[int, int]:
        tensor = tensor_of(x)
        kept.append((x, tensor))
        # The version tells a tensor that was changed in place from itself before.
        return id(tensor), getattr(tensor, "_version", 0)

    def note(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        key = identity(first_input(args, kwargs))
        read.setdefault(name, []).append(key)
        givers.setdefault(name, []).append(given.get(key))

    def leave(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        given[identity(output)] = name

    args, kwargs = batch
    with hooked(modules, note, leave), torch.inference_mode(False), torch.no_grad():
        model(*args, **kwargs)
    groups: dict[tuple[int, int], list[str]] = {}
    for name, keys in read.items():
        if len(keys) == 1:
            groups.setdefault(keys[0], []).append(name)
    same = {name: tuple(names) for names in groups.values() for name in names}
    return Flow({name: tuple(found) for name, found in givers.items()}, same)


def copied(model: nn.Module) -> nn.Module:
    """A deep copy that keeps the class name, which certificates show and torch.fx drops."""
    twin = copy.deepcopy(model)
    if hasattr(model, "recompile"):
        type(twin).__name__ = type(model).__name__
    return twin


def float_twin(model: nn.Module) -> nn.Module:
    """A deep copy in evaluation mode with every quantizer off."""
    twin = copy.deepcopy(model).eval()
    QuantizationStatusManager.disable_param_quantization(twin, False)
    QuantizationStatusManager.disable_act_quantization(twin, False)
    QuantizationStatusManager.disable_return_quant_tensor(twin)
    for module in twin.modules():
        part: Any = module
        if hasattr(module, "quant_injector"):
            part.quant_injector = None  # a class created at run time cannot be pickled
        if isinstance(module, torch.fx.GraphModule) or hasattr(module, "recompile"):
            for node in part.graph.nodes:
                node.type = None  # annotations as text break torch's own pickling
            part.recompile()
    return twin
