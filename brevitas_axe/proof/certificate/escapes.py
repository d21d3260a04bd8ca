"""Ways in which numbers leave what a certificate follows: other forwards, numpy, other threads."""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

# Packages whose classes do what their names say.
_KNOWN = ("brevitas", "brevitas_axe", "torch")
# What a class of anybody's may define without changing what is computed.
_HARMLESS = {
    *("__init__", "__repr__", "extra_repr", "reset_parameters", "train", "eval", "state_dict"),
    *("load_state_dict", "_load_from_state_dict", "_save_to_state_dict", "__setstate__"),
    *("__getstate__", "__deepcopy__", "_apply", "_get_name", "__dir__", "__init_subclass__"),
}
# Methods of tensors that hand their values to code that PyTorch does not see.
_READERS = {
    *("numpy", "__array__", "tolist", "__dlpack__", "data_ptr", "untyped_storage", "storage"),
    *("__reduce_ex__", "__cuda_array_interface__", "_typed_storage"),
}


def is_known(kind: type) -> bool:
    """Whether a class is of a package whose classes do what their names say."""
    return kind.__module__.partition(".")[0] in _KNOWN


def overridden(module: nn.Module) -> str:
    """A method of Brevitas's layer that a class of somebody else, or the object, replaces; or ''.

    Args:
        module: a layer of Brevitas, or of a class derived from one.
    """
    known, others = [], []
    for kind in type(module).__mro__:
        package = kind.__module__.partition(".")[0]
        (known if package in _KNOWN or kind is object else others).append(kind)
    methods = {name for kind in known for name, part in vars(kind).items() if _computes(part)}
    methods -= _HARMLESS
    replaced = [name for kind in others for name in vars(kind) if name in methods]
    replaced += [name for name in vars(module) if name in methods and not _is_own(module, name)]
    return min(replaced, default="")


def _is_own(module: nn.Module, name: str) -> bool:
    """Whether what the object has is its class's method, which accelerate leaves behind."""
    part = vars(module)[name]
    own = getattr(type(module), name)
    return type(part) is MethodType and part.__func__ is own and part.__self__ is module


def _computes(part: object) -> bool:
    return callable(part) or isinstance(part, property | staticmethod | classmethod)


class Readings(TorchFunctionMode):
    """Reports tensors whose values are read by code that is not followed, such as numpy's.

    Args:
        known: whether a tensor holds numbers that are followed.
        inside: function that is true while a quantizer or a module with an own entry runs.
        tell: called with the name of the method.
    """

    def __init__(
        self,
        known: Callable[[Tensor], bool],
        inside: Callable[[], bool],
        tell: Callable[[str], None],
    ) -> None:
        super().__init__()
        self._known, self._inside, self._tell = known, inside, tell

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "__get__":  # of an attribute, such as __cuda_array_interface__
            name = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in _READERS and not self._inside():
            given = tree_leaves((args, kwargs))
            if any(isinstance(part, Tensor) and self._known(part) for part in given):
                self._tell(f"Tensor.{name}")
        return func(*args, **kwargs)
