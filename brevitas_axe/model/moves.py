"""Operations that only move numbers, on quantized tensors: what they give is on the same grid.

Brevitas's QuantTensor is a named tuple, so that x[:, ::2] takes one of its fields, and it has no
chunk, split or pad. Its graph quantization knows of moves only a few. Here they become modules that
it takes for identities: it shares scales through them, and does not quantize again behind them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from brevitas.quant_tensor import IntQuantTensor
from torch import Tensor, nn

from brevitas_axe.model.nodes import is_node
from brevitas_axe.model.running import Graph
from brevitas_axe.model.sizes import Seen

_METHODS = ("contiguous", "flip", "narrow", "permute", "roll", "select", "squeeze", "transpose",
            "swapaxes", "unsqueeze")  # fmt: skip
_FUNCTIONS = {
    torch.flip, torch.narrow, torch.permute, torch.roll, torch.select, torch.squeeze,
    torch.swapaxes, torch.transpose, torch.unsqueeze, torch.channel_shuffle,
    torch.nn.functional.channel_shuffle,
}  # fmt: skip
# These give several tensors, of which `operator.getitem` takes one.
_PARTS_METHODS = ("chunk", "split", "tensor_split", "unbind")
_PARTS_FUNCTIONS = {torch.chunk, torch.split, torch.tensor_split, torch.unbind}
_MODULES = (nn.ChannelShuffle, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d)


class Move(nn.Identity):
    """Applies an operation that moves numbers, or puts zeros between them.

    Args:
        operation: of a tensor.
        text: what it is, for the representation.
    """

    def __init__(self, operation: Callable[[Tensor], Tensor], text: str) -> None:
        super().__init__()
        self.operation, self.text = operation, text

    def forward(self, x: Any) -> Any:
        """Moved; a QuantTensor stays one where a single scale is everywhere the same."""
        if not isinstance(x, IntQuantTensor):
            return self.operation(getattr(x, "value", x))
        if x.scale.numel() == 1 and x.is_zero_zero_point(x):
            return x.set(value=self.operation(x.value))
        return self.operation(x.value)

    def extra_repr(self) -> str:
        """What is moved."""
        return self.text


class _Called:
    """A function or method with its arguments, which can be copied and pickled."""

    def __init__(self, target: Any, args: tuple, kwargs: dict, part: Any = None) -> None:
        self.target, self.args, self.kwargs, self.part = target, args, kwargs, part

    def __call__(self, x: Tensor) -> Tensor:
        method = isinstance(self.target, str)
        function = getattr(torch.Tensor, self.target) if method else self.target
        found = function(x, *self.args, **self.kwargs)
        return found if self.part is None else found[self.part]


def moves_as_modules(model: Graph) -> Graph:
    """Replaces every operation that only moves numbers by a `Move`, in place."""
    for node in list(model.graph.nodes):
        found = _move_of(model, node)
        if found is None:
            continue
        operation, source = found
        name = f"{node.name}_moved"
        # Not the text of a function, which has its address and differs in every process.
        text = getattr(node.target, "__name__", str(node.target))
        model.add_submodule(name, Move(operation, text))
        with model.graph.inserting_before(node):
            new = model.graph.call_module(name, (source,))
        node.replace_all_uses_with(new)
        model.graph.erase_node(node)
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def _move_of(model: Graph, node: Graph) -> tuple[Callable, Graph] | None:
    """The operation of a node and the tensor that it moves; None for any other."""
    if node.op == "call_module":
        module = model.get_submodule(node.target)
        moves = isinstance(module, _MODULES) or _is_nearest(module)
        return (module, node.args[0]) if moves and len(node.args) == 1 else None
    if node.op not in ("call_method", "call_function") or not node.args:
        return None
    if node.target is operator.getitem:
        return _taken(node)
    source = node.args[0]
    known = node.target in (_METHODS if node.op == "call_method" else _FUNCTIONS)
    if not (known or _pads_zeros(node)) or _needs_nodes(node) or not is_node(source):
        return None
    return _Called(node.target, tuple(node.args[1:]), dict(node.kwargs)), source


def _taken(node: Graph) -> tuple[Callable, Graph] | None:
    """x[index], or one of the parts of x."""
    source, index = node.args
    if not is_node(source) or _has_nodes(index) or _is_size(source):
        return None
    parts = source.op == "call_method" and source.target in _PARTS_METHODS
    if parts or (source.op == "call_function" and source.target in _PARTS_FUNCTIONS):
        if _needs_nodes(source) or not is_node(source.args[0]):
            return None
        called = _Called(source.target, tuple(source.args[1:]), dict(source.kwargs), index)
        return called, source.args[0]
    slices = index if isinstance(index, tuple) else (index,)
    if not any(isinstance(part, slice) or part is Ellipsis for part in slices):
        return None  # the element of a tuple, or of a size
    return _Called(operator.getitem, (index,), {}), source


def _is_size(node: Graph) -> bool:
    """True for x.shape, x.size() and their slices."""
    if node.target is operator.getitem and is_node(node.args[0]):
        return _is_size(node.args[0])
    return node.target == "size" or (node.target is getattr and node.args[1] == "shape")


def _pads_zeros(node: Graph) -> bool:
    if node.op != "call_function" or node.target is not F.pad:
        return False
    rest = dict(zip(("pad", "mode", "value"), node.args[1:], strict=False)) | dict(node.kwargs)
    return rest.get("mode", "constant") == "constant" and not rest.get("value")


def _is_nearest(module: nn.Module) -> bool:
    return isinstance(module, nn.Upsample) and module.mode == "nearest"


def _has_nodes(value: Any) -> bool:
    if isinstance(value, slice):
        return any(map(_has_nodes, (value.start, value.stop, value.step)))
    if isinstance(value, (tuple, list)):
        return any(map(_has_nodes, value))
    return is_node(value) or isinstance(value, Seen)


def _needs_nodes(node: Graph) -> bool:
    """Whether an argument beside the first is computed in the graph."""
    return _has_nodes(tuple(node.args[1:])) or _has_nodes(tuple(node.kwargs.values()))
