"""JSON and tensors → the model."""

from __future__ import annotations

import enum
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from brevitas.inject import ExtendedInjector
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption, InvalidState
from brevitas_axe.model.attention_products import connected
from brevitas_axe.model.proxies.weight import AccumulatorAwareWeightQuantProxy, reset_scale
from brevitas_axe.model.running import shares_on_load
from brevitas_axe.model.structure.graphs import fill_graph
from brevitas_axe.model.structure.names import class_of, function_of


def rebuild(
    content: Mapping[str, Any], tensors: Mapping[str, Tensor], yours: nn.Module | None = None
) -> tuple[Any, ...]:
    """The model that `describe` was given, and the values beside it.

    Args:
        content: JSON that `describe` wrote.
        tensors: by name.
        yours: model whose classes are not those of torch or Brevitas; changed in place. None where
            there are none.

    Raises:
        InvalidOption: a module that only the user has, and that is not in `yours`.
        InvalidState: a class or function that no folder may name, or one that is none.
    """
    try:
        building = _Building(content, tensors, yours)
        model = building.value(content["root"])
        values = [building.value(value) for value in content["values"]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidState(
            f"the saved structure is none that this version reads ({type(error).__name__}: "
            f"{error}); load it with the version that wrote it, which manifest.json names."
        ) from error
    return shares_on_load(connected(model)), *values


class _Building:
    """Makes all objects empty first, because they refer to each other, and then fills them."""

    def __init__(
        self, content: Mapping[str, Any], tensors: Mapping[str, Tensor], yours: nn.Module | None
    ) -> None:
        self._tensors, self._yours = tensors, yours
        self._made: dict[str, Tensor] = {}
        self._injectors: dict[int, Any] = {}
        self._written = content["injectors"]
        self._classes = {} if yours is None else _classes_of(yours)
        records = content["objects"]
        self.objects = [self._empty(record) for record in records]
        for made, record in zip(self.objects, records, strict=True):
            self._fill(made, record)
        for made, record in zip(self.objects, records, strict=True):
            if "graph" in record:
                fill_graph(made, record["graph"], self)

    def value(self, value: Any) -> Any:
        """What `describe` wrote for one value."""
        if isinstance(value, list):
            return [self.value(item) for item in value]
        if not isinstance(value, dict):
            return value
        [kind] = (key for key in value if key != "grad")
        return getattr(self, f"_read_{kind}")(value[kind], value)

    def _read_float(self, text: str, _: dict) -> float:
        return float(text)

    def _read_tuple(self, items: list, _: dict) -> tuple:
        return tuple(self.value(item) for item in items)

    def _read_size(self, items: list, _: dict) -> torch.Size:
        return torch.Size(items)

    def _read_set(self, items: list, _: dict) -> set:
        return {self.value(item) for item in items}

    def _read_dict(self, pairs: list, _: dict) -> dict:
        return {self.value(key): self.value(item) for key, item in pairs}

    def _read_ordered(self, pairs: list, _: dict) -> OrderedDict:
        return OrderedDict((self.value(key), self.value(item)) for key, item in pairs)

    def _read_dtype(self, name: str, _: dict) -> torch.dtype:
        found = getattr(torch, name)
        if not isinstance(found, torch.dtype):
            raise ValueError(f"'{name}' is no dtype")
        return found

    def _read_device(self, name: str, _: dict) -> torch.device:
        return torch.device("cpu")  # where everything is read to

    def _read_slice(self, parts: list, _: dict) -> slice:
        return slice(*(self.value(part) for part in parts))

    def _read_ellipsis(self, _: bool, __: dict) -> Any:
        return Ellipsis

    def _read_weak(self, value: Any, _: dict) -> Any:
        return weakref.ref(self.value(value))

    def _read_enum(self, parts: list, _: dict) -> enum.Enum:
        kind = self._class(parts[0])
        if not issubclass(kind, enum.Enum):
            raise ValueError(f"{kind.__name__} is no enumeration")
        return kind[parts[1]]

    def _read_class(self, name: Any, _: dict) -> type:
        return self._class(name)

    def _read_function(self, name: str, _: dict) -> Any:
        return function_of(name)

    def _read_method(self, parts: list, _: dict) -> Any:
        if parts[1].startswith("_"):
            raise ValueError(f"'{parts[1]}' is private")
        return getattr(self.value(parts[0]), parts[1])

    def _read_tensor(self, name: str, _: dict) -> Tensor:
        return self._made.setdefault(name, self._tensors[name])

    def _read_parameter(self, name: str, entry: dict) -> Tensor:
        if name not in self._made:
            self._made[name] = nn.Parameter(self._tensors[name], requires_grad=entry["grad"])
        return self._made[name]

    def _read_object(self, index: int, _: dict) -> Any:
        return self.objects[index]

    def _read_injector(self, index: int, _: dict) -> Any:
        if index not in self._injectors:
            written = self._written[index]
            bases = tuple(self.value(base) for base in written["bases"])
            if not bases or not all(isinstance(base, type(ExtendedInjector)) for base in bases):
                raise ValueError("a quantizer that starts from none")
            changes = {key: self.value(item) for key, item in written["changes"].items()}
            make: Any = type(ExtendedInjector)
            self._injectors[index] = make(written["name"], bases, changes)
        return self._injectors[index]

    def _class(self, name: Any) -> type:
        if isinstance(name, str):
            return class_of(name)
        mine = name["yours"]
        if mine not in self._classes:
            raise InvalidOption(
                f"the saved model has parts of your own class {mine}; give load the model that was "
                "quantized, or the function that builds it."
            )
        return self._classes[mine]

    def _empty(self, record: dict) -> Any:
        if "yours" in record:
            return self._mine(*record["yours"])
        kind = class_of(record["class"])
        if "graph" in record:
            bare = nn.Module()
            return kind(bare, _empty_graph(kind), record["graph"]["name"])  # type: ignore[call-arg]
        made: Any = object.__new__(kind)
        if isinstance(made, nn.Module):
            nn.Module.__init__(made)
        return made

    def _mine(self, path: str, name: str) -> nn.Module:
        """A module of the user's own model."""
        found = None
        if self._yours is not None:
            found = dict(self._yours.named_modules(remove_duplicate=False)).get(path)
        if found is None or type(found).__qualname__ != name:
            where = f"module '{path}'" if path else "the model"
            instead = "" if found is None else f", and yours is a {type(found).__qualname__}"
            raise InvalidOption(
                f"{where} of the saved model is of your own class {name}{instead}; give load the "
                "model that was quantized, or the function that builds it."
            )
        return found

    def _fill(self, made: Any, record: dict) -> None:
        state = dict(record["state"])
        content = vars(made)
        if isinstance(made, nn.Module):
            for key in ("_parameters", "_buffers", "_modules"):
                place = content[key]
                place.clear()
                place.update((name, self.value(item)) for name, item in state.pop(key).items())
        for key, item in state.items():
            content[key] = self.value(item)
        if isinstance(made, AccumulatorAwareWeightQuantProxy):
            made.register_load_state_dict_post_hook(reset_scale)


def _empty_graph(kind: type) -> Any:
    from brevitas.backport.fx import Graph as BrevitasGraph
    from torch.fx import Graph

    return Graph() if kind.__module__.startswith("torch") else BrevitasGraph()


def _classes_of(model: nn.Module) -> dict[str, type]:
    """All classes of modules that a user's model has."""
    return {type(module).__qualname__: type(module) for module in model.modules()}
