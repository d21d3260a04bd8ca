"""The stack of blocks in a transformer, and one block on its own.

A stack is a list of modules of one class, each with linear layers: `model.layers` of Llama,
`transformer.h` of GPT-2, `encoder.layer` of BERT. What the model passes to a block besides the
hidden states (masks, positions) is recorded once; the hidden states are then passed from block to
block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from brevitas import nn as qnn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_map

from brevitas_axe.errors import InvalidOption, UnsupportedLayer
from brevitas_axe.model.layers import find_unquantized
from brevitas_axe.model.plain import acts_as_linear
from brevitas_axe.model.prepare import Batch
from brevitas_axe.model.running import hooked

Call = Batch
_Stack = nn.ModuleList | nn.Sequential
# Keyword of the hidden states in transformers, where they are not passed by position.
_HIDDEN = "hidden_states"


def find_blocks(model: nn.Module, stack: str | None = None) -> dict[str, nn.Module]:
    """The blocks of a model by module name, first to last.

    Args:
        model: contains one stack; a stack inside another's blocks (experts) does not count.
        stack: module name of the stack; needed only where there are several.

    Raises:
        InvalidOption: there is no stack, several, or none of that name.
        UnsupportedLayer: one module serves as several blocks.
    """
    stacks = dict(_stacks("", model))
    if not stacks:
        raise InvalidOption(
            f"{type(model).__name__} has no stack of equal blocks (an nn.ModuleList or "
            "nn.Sequential of modules with linear layers); use brevitas_axe.quantize."
        )
    if stack is None and len(stacks) > 1:
        raise InvalidOption(
            f"{type(model).__name__} has several stacks of blocks; name one of {', '.join(stacks)} "
            "(stack=...)."
        )
    chosen = next(iter(stacks)) if stack is None else stack
    if chosen not in stacks:
        raise InvalidOption(f"'{chosen}' is no stack of blocks; there is {', '.join(stacks)}.")
    blocks = {f"{chosen}.{key}": block for key, block in stacks[chosen].named_children()}
    if len(blocks) < len(stacks[chosen]):  # named_children lists a shared module once
        raise UnsupportedLayer(
            f"blocks of '{chosen}' share one module, and each solve would overwrite the last; "
            "copy it once per block."
        )
    return blocks


def blocks_in_turn(model: nn.Module, batch: Batch) -> bool:
    """Whether a float model is better solved block after block than as a whole.

    It has one stack whose blocks can be fed one after the other, whose dot products are all linear
    layers, and each of which keeps something in float, a layer norm as a rule. Where nothing stays
    in float, as in convolutional nets, the model can become integers as a whole.

    Args:
        model: runs once, to the last block of the stack, where there is a candidate.
        batch: of its forward.
    """
    try:
        blocks = find_blocks(model)
        if not all(map(_is_linear_and_norm, blocks.values())):
            return False
        with torch.no_grad():
            record_calls(model, blocks, [batch])
            return _called_once(model, next(iter(blocks.values())), batch)
    except (InvalidOption, UnsupportedLayer):
        return False


def _called_once(model: nn.Module, block: nn.Module, batch: Batch) -> bool:
    """Whether a whole forward calls a block once; `record_calls` ends at the last block."""
    calls: list[int] = []
    handle = block.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        model(*batch[0], **batch[1])
    finally:
        handle.remove()
    return len(calls) == 1


def _is_linear_and_norm(block: nn.Module) -> bool:
    """Linear layers and float layers with parameters, and no others."""
    names = left_in_float(block)
    layers = [block.get_submodule(name) for name in names]
    if not all(type(m) is nn.Linear or is_conv1d(m) or acts_as_linear(m) for m in layers):
        return False
    others = [m for m in block.modules() if m._parameters and m not in layers]
    return bool(others) and not any(
        isinstance(m, _BatchNorm | nn.MultiheadAttention) for m in others
    )


def _stacks(name: str, module: nn.Module) -> Iterator[tuple[str, _Stack]]:
    """Outermost lists of one class whose members have linear layers."""
    members = list(module.children())
    if isinstance(module, _Stack) and members:
        alike = len({type(member) for member in members}) == 1
        leaves = any(isinstance(m, nn.Linear) or is_conv1d(m) for m in members)
        if alike and not leaves and all(_has_linear(member) for member in members):
            yield name, module
            return
    for key, child in module.named_children():
        yield from _stacks(f"{name}.{key}" if name else key, child)


def _has_linear(module: nn.Module) -> bool:
    return any(isinstance(m, nn.Linear) or is_conv1d(m) for m in module.modules())


def is_conv1d(module: nn.Module) -> bool:
    """True for GPT-2's linear layer, which stores its weight transposed."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def to_linears(block: nn.Module) -> None:
    """Turns layers of classes of their own, as of GPT-2 and Falcon, into nn.Linear, in place.

    They compute the same.
    """
    for name, module in list(block.named_modules()):
        if acts_as_linear(module):
            module.__class__ = nn.Linear
        if is_conv1d(module):
            old: Any = module
            new = nn.Linear(*old.weight.shape, device="meta")
            new.weight = nn.Parameter(old.weight.detach().t().contiguous())
            new.bias = old.bias
            block.set_submodule(name, new.train(old.training))


@contextmanager
def restored_on_error(module: nn.Module) -> Iterator[None]:
    """Context that restores a module's parts and numbers if an error is raised within.

    It keeps a copy of the parameters meanwhile. The parameters stay the same objects, so that they
    are still shared.
    """
    parts = [(m, dict(m._modules), dict(m._parameters)) for m in module.modules()]
    numbers = [(p, p.detach().clone()) for p in module.parameters()]
    try:
        yield
    except BaseException:
        for part, modules, parameters in parts:
            part._modules, part._parameters = modules, parameters
        for parameter, number in numbers:
            parameter.data = number
        raise


def record_calls(
    model: nn.Module, blocks: Mapping[str, nn.Module], batches: Sequence[Batch]
) -> tuple[list[Tensor], list[list[Call]]]:
    """Records the calls of the blocks of a float model.

    Args:
        model: runs once per batch, to the last block.
        blocks: as `find_blocks` gives them.
        batches: calibration batches.

    Returns:
        The first block's hidden states, one tensor per batch; and the call of each block for each
        batch, its hidden states left out. Tensors that the model shares between blocks are shared.

    Raises:
        UnsupportedLayer: a block is called more than once, not at all, without hidden states, or
            with others than the block before it gives.
    """
    names = list(blocks)
    first: list[Tensor] = []
    calls: list[list[Call]] = [[] for _ in names]
    given: dict[int, Tensor] = {}

    def note(name: str, _: nn.Module, args: tuple, kwargs: dict) -> None:
        hidden, index = _hidden_of(args, kwargs), names.index(name)
        if index == 0:
            first.append(hidden.detach())
        elif not _same(given.pop(index - 1, None), hidden):
            raise UnsupportedLayer(
                f"block '{name}' does not get exactly what block '{names[index - 1]}' gives, so "
                "they cannot be solved one after the other; move what the model does in between "
                "into a block, or use brevitas_axe.quantize."
            )
        calls[index].append(_without_state(args, kwargs))
        if index == len(names) - 1:
            raise _LastBlock

    def keep(name: str, _: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        hidden = _hidden_in(output)
        if not isinstance(hidden, Tensor):
            raise UnsupportedLayer(
                f"block '{name}' gives a {type(hidden).__name__} instead of hidden states, so the "
                "next one cannot be fed with them; use brevitas_axe.quantize."
            )
        given[names.index(name)] = hidden.clone()  # the model may change the tensor in place

    with hooked(blocks, note, keep), torch.no_grad():
        for args, kwargs in batches:
            with suppress(_LastBlock):
                model(*args, **kwargs)
    if any(len(seen) != len(batches) for seen in calls):
        raise UnsupportedLayer(
            "not every block of the model is called exactly once per forward, so they cannot be "
            "solved one after the other; use brevitas_axe.quantize."
        )
    return first, calls


class _LastBlock(BaseException):
    """Ends a forward at its last block; no `except Exception` of a model may catch it."""


def _hidden_of(args: tuple, kwargs: dict) -> Tensor:
    hidden = args[0] if args else kwargs.get(_HIDDEN)
    if not isinstance(hidden, Tensor):
        raise UnsupportedLayer(
            "a block of this model takes no hidden states as its first argument, so blocks "
            "cannot be solved one after the other; use brevitas_axe.quantize."
        )
    return hidden


def _hidden_in(output: Any) -> Any:
    """Hidden states in a block's output: the output itself, or its first element."""
    return output[0] if isinstance(output, tuple) else output


def _same(given: Tensor | None, taken: Tensor) -> bool:
    """Whether two hidden states are equal to the last bit, on any devices."""
    if given is None or (given.shape, given.dtype) != (taken.shape, taken.dtype):
        return False
    return torch.allclose(given.to(taken.device), taken, rtol=0, atol=0, equal_nan=True)


def _without_state(args: tuple, kwargs: dict) -> Call:
    """The call without hidden states, and without the key-value cache, which would grow."""

    def kept(value: Any) -> Any:
        return None if type(value).__name__.endswith("Cache") else value

    rest = {key: None if key == _HIDDEN else kept(value) for key, value in kwargs.items()}
    return (None, *map(kept, args[1:])) if args else (), rest


def with_hidden(call: Call, hidden: Tensor) -> Call:
    """A recorded call with the given hidden states."""
    args, kwargs = call
    return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, _HIDDEN: hidden})


def first_sample(call: Call) -> Call:
    """A whole call cut to its first sample: matrices with one row per sample lose the others."""
    samples = _hidden_of(*call).shape[0]

    def cut(value: Any) -> Any:
        mine = isinstance(value, Tensor) and value.dim() > 1 and value.shape[0] == samples
        return value[:1] if mine else value

    return tree_map(cut, call)


def nest(container: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module into another under a dotted name, with empty modules in between."""
    *parents, key = name.split(".")
    for parent in parents:
        container.add_module(parent, nn.Module())
        container = container.get_submodule(parent)
    container.add_module(key, module)


class Alone(nn.Module):
    """One block under its name in the whole model, with two streams of inputs.

    Quantized layers get the outputs of the quantized blocks before them, their float twins those
    of the float blocks: so a solver compares the two exactly as in the whole model.
    """

    def __init__(self, name: str, block: nn.Module) -> None:
        super().__init__()
        self.name = name
        nest(self, name, block)
        self.train(block.training)

    def forward(self, quantized: Call, real: Call) -> Tensor:
        """The block's hidden states, quantized or, where its quantizers are off, float."""
        args, kwargs = quantized if self._quantizes() else real
        return _hidden_in(self.get_submodule(self.name)(*args, **kwargs))

    def _quantizes(self) -> bool:
        layers: list[Any] = [m for m in self.modules() if isinstance(m, qnn.QuantLinear)]
        return any(layer.weight_quant.is_quant_enabled for layer in layers)


def left_in_float(model: nn.Module) -> list[str]:
    """Names of linear, convolution and Conv1D layers without integer weights."""
    conv1d = [name for name, module in model.named_modules() if is_conv1d(module)]
    return [*find_unquantized(model), *conv1d]
