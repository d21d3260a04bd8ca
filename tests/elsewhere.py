"""Tensors that say they lie on another device, so that what would mix devices is found on a CPU.

The device is one of torch's Python backends, which every build of torch can have; torch knows its
name, but no kernel for it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_MODULE = SimpleNamespace(
    is_available=lambda: True,
    is_initialized=lambda: True,
    device_count=lambda: 1,
    current_device=lambda: 0,
    get_amp_supported_dtype=lambda: [torch.float16, torch.bfloat16],
    _is_in_bad_fork=lambda: False,
    manual_seed_all=lambda seed: None,
    get_rng_state=lambda device=None: torch.empty(0, dtype=torch.uint8),
    set_rng_state=lambda state, device=None: None,
)
_setup_privateuseone_for_python_backend("elsewhere", backend_module=_MODULE)
DEVICE = torch.device("elsewhere", 0)


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

    @property
    def data(self) -> Tensor:
        return ElsewhereTensor(self.held.data)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, ElsewhereTensor):
            raise RuntimeError(f"data of {DEVICE} is replaced by data of {value.device}")
        Tensor.data.__set__(self, value)
        self.held = value.held

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


def _empty(size, *strides, dtype=None, layout=None, device=None, pin_memory=None, **_) -> Tensor:
    held = (
        torch.empty_strided(size, *strides, dtype=dtype)
        if strides
        else torch.empty(size, dtype=dtype)
    )
    return ElsewhereTensor(held)


def _copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    held = [t.held if isinstance(t, ElsewhereTensor) else t for t in (target, source)]
    held[0].copy_(held[1])
    return target


# What torch makes below its modes, such as the copy inside `torch.tensor(..., device=DEVICE)`.
_LIBRARY = torch.library.Library("aten", "IMPL")
for _name in ("empty_strided", "empty.memory_format"):
    _LIBRARY.impl(_name, _empty, "PrivateUse1")
_LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")
