"""Symbolic traces of forwards that plain torch.fx does not follow.

A forward behind a decorator takes `*args, **kwargs`, of which torch.fx makes inputs of their own;
and forwards that ask for sizes (`if width % patch: ...`, `int(height / 2)`, `view(*shape)`) need
numbers. So only the inputs that a sample gives become inputs of the graph, and every node carries
what it gives on that sample. Whether the graph holds for other samples is for the caller to check.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from brevitas.backport.fx import GraphModule
from brevitas.backport.fx._symbolic_trace import HAS_VARSTUFF, Tracer
from brevitas.backport.fx.proxy import Attribute, Proxy, TraceError
from torch import Tensor, nn
from torch.utils._pytree import register_pytree_node, tree_leaves, tree_map

from brevitas_axe.model.nodes import value_at
from brevitas_axe.model.running import Batch, Graph

# Functions that make a tensor of sizes alone.
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randn", "zeros")


class NamedOutputs(dict):
    """What a forward gives by names: read as a dictionary, by attribute, or by position."""

    def __getattr__(self, name: str) -> Any:
        if name not in self:
            raise AttributeError(f"this output has no '{name}'; it has {', '.join(self)}.")
        return self[name]

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


register_pytree_node(
    NamedOutputs,
    lambda outputs: (list(outputs.values()), list(outputs)),
    lambda values, names: NamedOutputs(zip(names, values, strict=True)),
    serialized_type_name="brevitas_axe.NamedOutputs",
)


def named_outputs(**values: Any) -> NamedOutputs:
    """The outputs of a graph, by name."""
    return NamedOutputs(values)


def traced_on(model: nn.Module, batch: Batch) -> Graph:
    """The graph of a forward with the inputs of a batch, of the path that this batch takes.

    Args:
        model: in evaluation mode; its graph shares its modules.
        batch: what the forward is called with. Sizes that the forward makes Python integers of
            are those of this batch ever after.

    Raises:
        TraceError: the path depends on numbers in tensors.
        Exception: any error of tracing.
    """
    tracer = _SampleTracer(batch)
    with _recorded_factories():
        graph: Graph = tracer.trace(model)
    graph._tracer_cls = None  # copies need no sample
    return GraphModule(tracer.root, graph, type(model).__name__)


def takes_anything(model: nn.Module) -> bool:
    """Whether a forward takes `*args` or `**kwargs`, as one behind a decorator does."""
    code = getattr(type(model).forward, "__code__", None)
    return code is not None and bool(code.co_flags & HAS_VARSTUFF)


def _positional_names(model: nn.Module, count: int) -> list[str]:
    """The names of the first inputs, those of `*args` by number."""
    names = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            break
        names.append(parameter.name)
    return [*names, *(f"input_{index}" for index in range(len(names), count))][:count]


@contextmanager
def _recorded_factories() -> Iterator[None]:
    """Context in which tensors of traced sizes become nodes; torch.fx does not see these calls."""
    plain = {name: getattr(torch, name) for name in _FACTORIES}

    def recorded(factory: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            seen = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Proxy)]
            if not seen:
                return factory(*args, **kwargs)
            return seen[0].tracer.create_proxy("call_function", factory, args, kwargs)

        return call

    try:
        for name, factory in plain.items():
            setattr(torch, name, recorded(factory))
        yield
    finally:
        for name, factory in plain.items():
            setattr(torch, name, factory)


class _Seen(Proxy):
    """A proxy whose value on the sample is known."""

    tracer: Any

    def __getattr__(self, name: str) -> Any:
        value = self.tracer.value_of(self)
        if callable(getattr(value, name)):
            return Attribute(self, name)
        return self.tracer.create_proxy("call_function", getattr, (self, name), {})

    def __len__(self) -> int:
        return len(self.tracer.value_of(self))

    def __index__(self) -> int:
        return self.tracer.number_of(self).__index__()

    def __int__(self) -> int:
        return int(self.tracer.number_of(self))

    def __float__(self) -> float:
        return float(self.tracer.number_of(self))


class _SampleTracer(Tracer):
    """Brevitas's tracer, which computes every node on one sample as well."""

    def __init__(self, batch: Batch) -> None:
        super().__init__()
        self._batch = batch
        self._values: dict[Any, Any] = {}
        self._computing = False

    def create_args_for_root(
        self, root_fn: Callable, is_module: bool, concrete_args: Any = None
    ) -> tuple[Callable, list]:
        """Inputs by the names that the forward gives them, and a call with these alone.

        Those without tensors, None and options, are for the forward what they are in the sample.
        """
        args, kwargs = self._batch
        names = [*_positional_names(self.root, len(args)), *kwargs]
        inputs = []
        for name, value in zip(names, (*args, *kwargs.values()), strict=True):
            proxy = self.create_proxy("placeholder", name, (), {})
            self._values[proxy.node] = tree_map(_copied, value)
            holds = any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
            inputs.append(proxy if holds else value)

        def call(root: nn.Module, *inputs: Any) -> Any:
            named = dict(zip(kwargs, inputs[len(args) :], strict=True))
            output = root_fn(root, *inputs[: len(args)], **named)
            if isinstance(output, Mapping) and type(output) is not dict:
                return self.create_proxy("call_function", named_outputs, (), dict(output))
            return output

        return call, [self.root, *inputs]

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> Any:
        """A node, and what it gives on the sample."""
        node = super().create_node(kind, *args, **kwargs)
        if kind not in ("placeholder", "output"):
            self._values[node] = self._computed(node)
        return node

    def proxy(self, node: Any) -> Proxy:
        """What stands for a node in the forward."""
        return _Seen(node, self)

    def value_of(self, proxy: Proxy) -> Any:
        """What a proxy is on the sample."""
        return self._values[proxy.node]

    def number_of(self, proxy: Proxy) -> Any:
        """The same, where it is no tensor."""
        value = self.value_of(proxy)
        if isinstance(value, Tensor):
            raise TraceError("the path of its forward depends on numbers in tensors")
        return value

    def to_bool(self, obj: Proxy) -> bool:
        """The branch that the sample takes."""
        return bool(self.number_of(obj))

    def iter(self, obj: Any) -> Iterator[Any]:
        """One part after the other."""
        return iter([obj[index] for index in range(len(self.value_of(obj)))])

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        """Parameters as they are while a node is computed."""
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        """Modules as they are while a node is computed."""
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def _computed(self, node: Any) -> Any:
        """What a node gives on the sample."""
        self._computing = True
        try:
            with torch.no_grad():
                return value_at(self.root, node, self._values)
        finally:
            self._computing = False


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value
