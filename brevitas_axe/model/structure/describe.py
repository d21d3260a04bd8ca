"""A model → JSON and tensors."""

from __future__ import annotations

import enum
import inspect
import math
import types
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from brevitas.inject import ExtendedInjector
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from torch import Tensor, nn

from brevitas_axe.errors import InvalidOption
from brevitas_axe.model.structure.graphs import described_graph, graph_class
from brevitas_axe.model.structure.names import class_name, function_name

# What nn.Module itself keeps beside parameters, buffers and children: hooks.
INTERNAL = frozenset(vars(nn.Module())) - {
    "training",
    "_parameters",
    "_buffers",
    "_modules",
    "_non_persistent_buffers_set",
}
# Of accelerate and of torch.fx: made anew.
_LEFT_OUT = ("_hf_hook", "_old_forward", "forward", "save_pretrained")
_CACHED = "_cached_"


def describe(model: nn.Module, *values: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Everything of which a model consists.

    Args:
        model: any Brevitas model.
        values: further things to keep: tensors, numbers, and containers of them.

    Returns:
        JSON content, and tensors by name on the CPU. Modules have the names of the state dict.

    Raises:
        InvalidOption: something that cannot be kept, by the name of its module.
    """
    description = _Description(model)
    root = description.value(model, "the model")
    more = [description.value(value, "the example") for value in values]
    content = {"objects": description.objects, "injectors": description.injectors}
    return {"root": root, "values": more, **content}, description.tensors


class _Description:
    """Tables of objects, injectors and tensors, each once however often it is met."""

    def __init__(self, model: nn.Module) -> None:
        self.objects: list[dict[str, Any]] = []
        self.injectors: list[dict[str, Any]] = []
        self.tensors: dict[str, Tensor] = {}
        self._paths = {id(module): name for name, module in model.named_modules()}
        self._known: dict[int, dict[str, Any]] = {}
        self._kept: list[Any] = []  # an object that is gone may lend its identity to another

    def value(self, value: Any, where: str) -> Any:
        """One value as JSON."""
        if value is None or (isinstance(value, bool | str) and not isinstance(value, enum.Enum)):
            return value
        if type(value) is int:
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {"float": repr(value)}
        if type(value) is list:
            return [self.value(item, where) for item in value]
        for kind, name in ((tuple, "tuple"), (torch.Size, "size"), (set, "set")):
            if type(value) is kind:
                items = sorted(value) if kind is set else value
                return {name: [self.value(item, where) for item in items]}
        for kind, name in ((dict, "dict"), (OrderedDict, "ordered")):
            if type(value) is kind:
                pairs = value.items()
                return {name: [[self.value(k, where), self.value(v, where)] for k, v in pairs]}
        return self._special(value, where)

    def _special(self, value: Any, where: str) -> Any:
        if isinstance(value, torch.dtype | torch.device):
            return {type(value).__name__: str(value).removeprefix("torch.")}
        if isinstance(value, slice):
            return {"slice": [self.value(v, where) for v in (value.start, value.stop, value.step)]}
        if value is Ellipsis:
            return {"ellipsis": True}
        if isinstance(value, weakref.ref):  # recurrent layers have such ones to their weights
            return {"weak": self.value(value(), where)}
        if isinstance(value, enum.Enum):
            return {"enum": [self._class(type(value), where), value.name]}
        if isinstance(value, Tensor):
            return self._tensor(value, where)
        if isinstance(value, type(ExtendedInjector)):
            return self._injector(value, where)
        if isinstance(value, type):
            return {"class": self._class(value, where)}
        if isinstance(value, types.MethodType):
            return {"method": [self.value(value.__self__, where), value.__name__]}
        if callable(value) and not isinstance(value, nn.Module) and not hasattr(value, "__dict__"):
            return {"function": function_name(value, where)}
        if inspect.isroutine(value):
            return {"function": function_name(value, where)}
        return self._object(value, where)

    def _class(self, kind: type, where: str) -> Any:
        """The name of a class, or that of one which the user's own model has."""
        name = class_name(kind)
        return name if name is not None else {"yours": kind.__qualname__}

    def _tensor(self, value: Tensor, where: str) -> dict[str, Any]:
        if id(value) in self._known:
            return self._known[id(value)]
        kept = value.detach()
        if kept.is_meta or kept.layout is not torch.strided:
            raise InvalidOption(
                f"{where} holds a tensor that is not in memory, or sparse; bring it into memory."
            )
        name, count = where, 0
        while name in self.tensors:
            count += 1
            name = f"{where}~{count}"
        self.tensors[name] = kept.cpu().clone(memory_format=torch.contiguous_format)
        entry: dict[str, Any] = {"tensor": name}
        if isinstance(value, nn.Parameter):
            entry = {"parameter": name, "grad": value.requires_grad}
        return self._remember(value, entry)

    def _remember(self, value: Any, entry: dict[str, Any]) -> dict[str, Any]:
        self._kept.append(value)
        self._known[id(value)] = entry
        return entry

    def _injector(self, injector: Any, where: str) -> dict[str, Any]:
        """A class that Brevitas makes at run time: what it starts from, and what was changed."""
        if id(injector) in self._known:
            return self._known[id(injector)]
        name = class_name(injector)
        if name is not None:
            return self._remember(injector, {"class": name})
        entry = self._remember(injector, {"injector": len(self.injectors)})
        record: dict[str, Any] = {}
        self.injectors.append(record)
        name, bases = injector.__name__, injector.__bases__
        while len(bases) == 1 and class_name(bases[0]) is None:
            bases = bases[0].__bases__  # what was changed twice has its last value
        inherited: dict[str, Any] = {}
        for base in reversed(bases):
            inherited |= base.__dependencies__
        changes = {
            key: self.value(_dependency(spec, key, where), f"{where}.{key}")
            for key, spec in injector.__dependencies__.items()
            if inherited.get(key) is not spec
        }
        record["name"] = name
        record["bases"] = [self._injector(base, where) for base in bases]
        record["changes"] = changes
        return entry

    def _object(self, value: Any, where: str) -> dict[str, Any]:
        """A module, or another object whose content is its attributes."""
        if id(value) in self._known:
            return self._known[id(value)]
        entry = self._remember(value, {"object": len(self.objects)})
        record: dict[str, Any] = {}
        self.objects.append(record)
        if isinstance(value, nn.Module):
            self._module(value, record, self._paths.get(id(value)), where)
            return entry
        name = class_name(type(value))
        if name is None or not hasattr(value, "__dict__"):
            raise InvalidOption(
                f"{where} holds a {type(value).__module__}.{type(value).__qualname__}, which a "
                "saved folder cannot hold; make it an attribute of a module of your own."
            )
        record["class"] = name
        record["state"] = self._attributes(vars(value), where)
        return entry

    def _module(
        self, module: nn.Module, record: dict[str, Any], path: str | None, where: str
    ) -> None:
        prefix = where if path is None else path
        state = {k: v for k, v in vars(module).items() if k not in (*INTERNAL, *_LEFT_OUT)}
        if "quant_injector" in state and isinstance(module, QuantProxyFromInjector):
            state["quant_injector"] = _own_injector(module)
        graph = graph_class(module)
        name = class_name(graph or type(module))
        if name is None:
            if path is None:
                raise InvalidOption(
                    f"{where} holds a module of your class {type(module).__qualname__} outside of "
                    "the model's children, which a saved folder cannot hold."
                )
            # The user's own: its attributes come from the model that is given to load.
            record["yours"] = [path, type(module).__qualname__]
            kept = ("training", "_parameters", "_buffers", "_modules")
            state = {key: state[key] for key in kept}
        else:
            record["class"] = name
            _check_hooks(module, prefix)
        if graph is not None:
            record["graph"] = described_graph(module, self, prefix)
            kept = ("training", "_parameters", "_buffers", "_modules")
            state = {k: v for k, v in state.items() if k in kept}
        record["state"] = self._attributes(state, prefix)

    def _attributes(self, state: Mapping[str, Any], where: str) -> dict[str, Any]:
        found = {}
        for key, value in state.items():
            if key in ("_parameters", "_buffers", "_modules"):
                inside = {
                    name: self.value(part, f"{where}.{name}" if where else name)
                    for name, part in value.items()
                }
                found[key] = inside
            elif key.startswith(_CACHED):
                found[key] = None
            elif key == "_non_persistent_buffers_set":
                found[key] = {"set": sorted(value)}
            else:
                found[key] = self.value(value, f"{where}.{key}" if where else key)
        return found


def _own_injector(proxy: Any) -> Any:
    """The injector of a quantizer that refers to its own layer.

    A copy of a model has the injectors of the original, which refer to the layers there.
    """
    injector, layers = proxy.quant_injector, proxy.tracked_module_list
    own: dict[str, Any] = {"proxy_module": proxy}
    own["module"] = layers[0] if len(layers) == 1 else tuple(layers)
    if "tracked_parameter_list" in injector:
        own["tracked_parameter_list"] = proxy.tracked_parameter_list
    fused = getattr(proxy, "fused_activation_quant_proxy", None)
    quant = proxy.tensor_quant if fused is None else fused.tensor_quant
    for key, spec in injector.__dependencies__.items():
        part = getattr(quant, key, None)
        if key not in own and isinstance(part, nn.Module) and _is_value(spec[1]):
            own[key] = part
    return injector.let(**own)


def _is_value(found: Any) -> bool:
    """Whether an injector was given a value, and not something that makes one."""
    return type(found).__name__ == "_RawSpec"


def _dependency(spec: Any, key: str, where: str) -> Any:
    """What an injector was given under a name."""
    found = spec[1]
    if _is_value(found):
        return found.dependency
    if isinstance(found, type):
        return found
    raise InvalidOption(
        f"the quantizer of {where} computes its '{key}' by code of your own, which a saved folder "
        "cannot hold; give it a value."
    )


def _check_hooks(module: nn.Module, where: str) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise InvalidOption(
            f"layer '{where}' has a forward hook, which a saved folder cannot hold; remove it."
        )
