"""From a plain model to a clean graph; rewrites that change its function are left out."""

from __future__ import annotations

import copy
import inspect
import operator
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import torch
from brevitas.graph.fixed_point import (
    CollapseConsecutiveConcats,
    MergeBatchNorm,
    MoveSplitBatchNormBeforeCat,
)
from brevitas.graph.quantize import symbolic_trace
from brevitas.graph.standardize import (
    DuplicateSharedStatelessModule,
    MeanMethodToAdaptiveAvgPool2d,
    RemoveStochasticModules,
    TorchFunctionalToModule,
)
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from brevitas_axe.errors import UnsupportedLayer
from brevitas_axe.model.layers import find_unquantized
from brevitas_axe.model.nodes import called_module
from brevitas_axe.model.running import Batch, Graph, copied
from brevitas_axe.model.tracing import takes_anything, traced_on

_RELUS = ("relu", "relu_", torch.relu, torch.relu_)
_SAMPLES = 4
_ASSERTIONS = ("_assert_is_none", "_assert")
# Largest difference between outputs, relative to the largest output, that rounding explains.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
# What rewrites do to parameters is rounded to float32: so many times the effect of one rounding.
_ROUNDINGS = 30
# A net that one rounding moves by more is as good as random, and nothing can be compared.
_FAR = 1e-3


def rewritten(model: nn.Module, batch: Batch) -> Graph:
    """The graph of a model in the form that Brevitas quantizes best, with the same function.

    Args:
        model: in evaluation mode; not modified.
        batch: on which graph and model are compared, in float64 if the model runs in it.

    Warns:
        UserWarning: a rewrite would change the model's function, and is left out.

    Raises:
        UnsupportedLayer: the traced graph computes something else.
        Exception: any error of tracing.
    """
    compare = _Comparison(model, batch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.fx's own deprecations inside Brevitas
        graph = _traced(copy.deepcopy(model), batch)
        whole = _stepped(graph, *_STEPS.values())
        if whole is not None and compare.agrees(whole):
            return whole
        if not compare.agrees(graph):
            raise UnsupportedLayer("its graph computes something else; its path may be data's")
        left_out = []
        for name, step in _STEPS.items():
            candidate = _stepped(graph, step)
            if candidate is None:
                continue
            if compare.agrees(candidate):
                graph = candidate
            else:
                left_out.append(name)
    for name in left_out:
        warnings.warn(
            f"{name} would change what the model computes, so it was left out; the model is "
            "quantized without it.",
            stacklevel=2,
        )
    return graph


def same_function(model: nn.Module, other: nn.Module, batch: Batch) -> bool:
    """Whether two models in evaluation mode compute the same on a batch, but for rounding."""
    return _Comparison(model, batch).agrees(other)


def _stepped(graph: Graph, *steps: Callable[[Graph], Graph]) -> Graph | None:
    """A copy behind some steps; None where one of them does not know what it finds."""
    found = copied(graph)
    try:
        for step in steps:
            found = step(found)
    except Exception:
        return None
    return found


def _traced(model: nn.Module, batch: Batch) -> Graph:
    """The graph of a forward, of the path that a batch takes where it has to be known."""
    graph = None
    if not takes_anything(model):
        try:
            graph = _traced_for_all(copy.deepcopy(model), batch)
        except Exception:
            with suppress(Exception):
                graph = _traced_on_path(model, batch)
            if graph is None:
                raise
    graph = _traced_on_path(model, batch) if graph is None else graph
    for node in list(graph.graph.nodes):
        # What torch.fx calls to see that an argument is what it was.
        if node.op == "call_function" and node.target.__name__ in _ASSERTIONS:
            graph.graph.erase_node(node)
        elif node.target is torch.cat and isinstance(node.kwargs.get("tensors"), tuple):
            node.kwargs = {**node.kwargs, "tensors": list(node.kwargs["tensors"])}  # for Brevitas
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def _traced_on_path(model: nn.Module, batch: Batch) -> Graph:
    """The graph of the path that a batch takes, which runs through every layer."""
    # One sample less than what is compared: it shows if their number became part of the graph.
    graph = traced_on(model, few(batch, _SAMPLES - 1))
    met = {node.target for node in graph.graph.nodes if node.op in ("call_module", "get_attr")}
    for name in find_unquantized(model):
        parts = name.split(".")
        owners = {".".join(parts[: end + 1]) for end in range(len(parts))}
        if not met & {*owners, f"{name}.weight"}:
            raise UnsupportedLayer(f"its path on calibration data leaves out layer '{name}'")
    return graph


def _traced_for_all(model: nn.Module, batch: Batch) -> Graph:
    """The graph without the optional arguments that the batch does not give."""
    signature = inspect.signature(model.forward)
    given = signature.bind(*batch[0], **batch[1]).arguments
    usual = {
        name: parameter.default
        for name, parameter in signature.parameters.items()
        if name not in given and parameter.default is not parameter.empty
    }
    return symbolic_trace(model, usual or None)


class _Comparison:
    """Outputs of the float model on a few samples, with which those of others are compared."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._model, self._batch, self._type = model, few(batch), torch.float64
        try:
            self._expected = self._outputs(model)
        except Exception:  # it casts inside, or needs more samples
            self._batch, self._type = batch, torch.float32
            self._expected = self._outputs(model)

    @cached_property
    def _effect_of_rounding(self) -> float:
        """How far outputs move where every parameter does by a rounding of float32.

        Deep nets of random weights may multiply it by thousands. Measured when it decides.
        """
        twin, generator = copy.deepcopy(self._model), torch.Generator().manual_seed(0)
        if self._type == torch.float64:
            twin = twin.double()
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                noise = torch.rand(parameter.shape, generator=generator) * 2 - 1
                parameter.data *= 1 + noise.to(parameter) * torch.finfo(torch.float32).eps
        return min(differ(self._expected, self._outputs(twin)), _FAR)

    def agrees(self, model: nn.Module) -> bool:
        """Whether a model computes the same up to rounding."""
        try:
            outputs = self._outputs(model)
        except Exception:
            return False
        difference = differ(self._expected, outputs)
        if difference <= _ROUNDING[self._type]:
            return True
        return difference <= _ROUNDINGS * self._effect_of_rounding

    def _outputs(self, model: nn.Module) -> list[Tensor]:
        args, kwargs = self._batch
        if self._type == torch.float64:
            model = copy.deepcopy(model).double()
            args, kwargs = tree_map(_double, (args, kwargs))
        with torch.no_grad():
            return tensors_in(model(*args, **kwargs))


def differ(expected: Sequence[Tensor], outputs: Sequence[Tensor]) -> float:
    """Largest difference, relative to the largest expected output; infinite where shapes differ."""
    if [t.shape for t in expected] != [t.shape for t in outputs]:
        return float("inf")
    worst = 0.0
    for left, right in zip(expected, outputs, strict=True):
        if left.numel() == 0:
            continue
        left, right = (t.detach().double().nan_to_num() for t in (left, right))
        size = max(float(left.abs().max()), 1e-12)
        worst = max(worst, float((left - right).abs().max()) / size)
    return worst


def tensors_in(output: Any) -> list[Tensor]:
    """Every tensor of an output, however it is nested; values of QuantTensors."""
    if isinstance(output, Mapping):
        return [tensor for value in output.values() for tensor in tensors_in(value)]
    if hasattr(output, "value") and not isinstance(output, Tensor):
        return [output.value]
    if isinstance(output, (tuple, list)):
        return [tensor for value in output for tensor in tensors_in(value)]
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def few(batch: Batch, samples: int = _SAMPLES) -> Batch:
    """The first samples, where every tensor has as many."""
    sizes = {leaf.shape[:1] for leaf in tree_leaves(batch) if isinstance(leaf, Tensor)}
    if len(sizes) != 1 or not next(iter(sizes)):
        return batch
    return tree_map(lambda v: v[:samples] if isinstance(v, Tensor) else v, batch)


def _rewrite_for_brevitas(model: Graph) -> Graph:
    """Rewrites what Brevitas does not recognize: x.relu(), torch.relu(x), and flattening views.

    After a Flatten it would quantize again, signed, and so lose a bit of the ReLU's output.
    """
    for node in list(model.graph.nodes):
        module = called_module(model, node)
        with model.graph.inserting_before(node):
            if node.op != "call_module" and node.target in _RELUS:
                model.add_submodule(f"{node.name}_module", nn.ReLU())
                new = model.graph.call_module(f"{node.name}_module", node.args[:1])
            elif isinstance(module, nn.Flatten):
                dims = (module.start_dim, module.end_dim)
                new = model.graph.call_function(torch.flatten, (node.args[0], *dims))
            elif _flattens(node):
                new = model.graph.call_function(torch.flatten, (node.args[0], 1))
            else:
                continue
        node.replace_all_uses_with(new)
        model.graph.erase_node(node)
    model.graph.eliminate_dead_code()
    model.recompile()
    return model


def _flattens(node: Graph) -> bool:
    """True for x.view(x.shape[0], -1), x.reshape(x.size(0), -1) and the like."""
    if node.op != "call_method" or node.target not in ("view", "reshape"):
        return False
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)):
        sizes = tuple(sizes[0])
    if len(sizes) != 2:
        return False
    x, (size, rest) = node.args[0], sizes
    kind = getattr(size, "op", None)  # numbers have no `op`
    if rest != -1 or kind is None:
        return False
    if kind == "call_method":
        return size.target == "size" and size.args == (x, 0)
    if size.target is not operator.getitem or size.args[1] != 0:
        return False
    owner = size.args[0]
    return owner.target in (getattr, "size") and owner.args in ((x, "shape"), (x,))


_STEPS: dict[str, Callable[[Graph], Graph]] = {
    "replacing functions by modules": TorchFunctionalToModule().apply,
    "copying modules that are called twice": DuplicateSharedStatelessModule().apply,
    "replacing means by pooling": MeanMethodToAdaptiveAvgPool2d().apply,
    "joining concatenations": CollapseConsecutiveConcats().apply,
    "moving batch norms in front of concatenations": MoveSplitBatchNormBeforeCat().apply,
    "folding batch norms into layers": MergeBatchNorm().apply,
    "removing dropout": RemoveStochasticModules().apply,
    "replacing methods by modules": _rewrite_for_brevitas,
}
