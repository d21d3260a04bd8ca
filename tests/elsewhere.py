"""Tensors that say they lie on another device, so that what would mix devices is found on a CPU.

The device is called "meta", the only one besides the CPU that every build of torch knows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device("meta")


class ElsewhereTensor(Tensor):
    """Holds its numbers on the CPU; only `cpu()`, `to("cpu")` and `item()` give them out."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> ElsewhereTensor:
        new = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        new.held = held
        return new

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


class Elsewhere(TorchDispatchMode):
    """Within it `device=DEVICE` works, and mixing it with the CPU raises RuntimeError."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _run(function: Any, args: tuple, kwargs: dict) -> Any:
    flat, _ = tree_flatten((args, kwargs))
    tensors = [value for value in flat if isinstance(value, Tensor)]
    there = [value for value in tensors if isinstance(value, ElsewhereTensor)]
    name = function.overloadpacket.__name__
    if name not in ("_to_copy", "copy_") and there and len(there) < len(tensors):
        here = [value for value in tensors if not isinstance(value, ElsewhereTensor) and value.ndim]
        if here:
            raise RuntimeError(f"{name} mixes tensors of {DEVICE} and cpu")
    device = kwargs.get("device")
    result_there = bool(there) if device is None else torch.device(device).type == DEVICE.type
    if name == "copy_":
        result_there = isinstance(args[0], ElsewhereTensor)
    if device is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def held(value: Any) -> Any:
        return value.held if isinstance(value, ElsewhereTensor) else value

    out = function(*tree_map(held, args), **tree_map(held, kwargs))
    if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor):
        return args[0]
    if not result_there:
        return out
    return tree_map(
        lambda value: ElsewhereTensor(value) if isinstance(value, Tensor) else value, out
    )
