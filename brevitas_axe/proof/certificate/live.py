"""The overflow certificate of a Brevitas model in memory, from the tensors of one forward.

The model runs once in eval mode. Hooks read the IntQuantTensor that arrives at each layer after
its input quantizer; a dispatch mode sees what happens to numbers outside such layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from weakref import ref

import numpy as np
import torch
from brevitas.core.zero_point import ZeroZeroPoint
from brevitas.nn.quant_layer import QuantWeightBiasInputOutputLayer
from brevitas.nn.quant_rnn import QuantRecurrentStackBase
from brevitas.proxy.parameter_quant import WeightQuantProxyFromInjectorBase
from brevitas.proxy.quant_proxy import QuantProxyFromInjector
from brevitas.proxy.runtime_quant import (
    ActQuantProxyFromInjectorBase,
    DynamicActQuantProxyFromInjector,
    TruncQuantProxyFromInjector,
)
from brevitas.quant_tensor import FloatQuantTensor, IntQuantTensor
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from brevitas_axe.errors import AxeError, InvalidOption
from brevitas_axe.plan import Plan
from brevitas_axe.proof.certificate.attention import Attention, has_products
from brevitas_axe.proof.certificate.certificate import (
    Certificate,
    DotProduct,
    Targets,
    excluded_names,
    tool_version,
)
from brevitas_axe.proof.certificate.escapes import Readings, overridden
from brevitas_axe.proof.certificate.floats import numbers_of
from brevitas_axe.proof.certificate.intervals import Intervals
from brevitas_axe.proof.certificate.outside import Outside
from brevitas_axe.proof.certificate.proof import Found, prove
from brevitas_axe.proof.certificate.sums import Join, sums
from brevitas_axe.proof.certificate.tensors import (
    InputFact,
    join,
    layer_integers,
    read_input,
    summed_range,
)
from brevitas_axe.proof.graph.grid import Unprovable

_RECURRENT = (QuantRecurrentStackBase, nn.RNNBase, nn.RNNCellBase)
_FLOAT = (nn.Linear, _ConvNd, nn.Bilinear, nn.MultiheadAttention, *_RECURRENT)
_GATES = "the gates of recurrent layers are not supported; unroll them into linear layers"
_UNQUANTIZED = "it is unquantized; use the Brevitas layer of the same name"
_NEVER_CALLED = "it was never called with the given args; pass args that use it"


def certify(
    model: nn.Module,
    accumulator_bit_width: int | None = None,
    tile_size: int | None = None,
    plan: Plan | None = None,
    exclude: Sequence[str] = (),
    args: Tensor | IntQuantTensor | tuple | None = None,
    kwargs: dict[str, Any] | None = None,
) -> Certificate:
    """Proves how wide every accumulator of a Brevitas model must be.

    The model is run as `model(*args, **kwargs)` and left as it was, whatever happens.

    Args:
        model: with Brevitas layers.
        accumulator_bit_width: P that every dot product must fit; None only measures.
        tile_size: inputs per inner accumulator; None means whole rows.
        plan: widths and tiles by layer; where it has None, the two arguments above count.
        exclude: layers that are left out of the verdict.
        args: example inputs. Their values do not matter to the proof; it needs a forward through
            every layer and, for products of two activations, the shape of the inputs.
        kwargs: example keyword inputs.

    Raises:
        InvalidOption: no args, a model that fails on them, or an unknown name in exclude.
        InvalidPlan: the plan names a layer that the model does not have.
        AccumulatorTooNarrow, InvalidTile: a width or tile size out of range.
    """
    targets = Targets(accumulator_bit_width, tile_size, plan)
    if not isinstance(model, nn.Module):
        raise InvalidOption(
            f"certify takes a torch module, not {type(model).__name__}; for an ONNX file use "
            "certify_file."
        )
    if args is None and not kwargs:
        raise InvalidOption("certify needs example inputs to run the model once; pass args=(x,).")
    args = () if args is None else args
    args = args if type(args) is tuple or type(args) is list else (args,)
    kwargs = kwargs or {}
    watch = _Watch(model, (*args, *kwargs.values()))
    with _evaluating(model), torch.no_grad(), watch.hooks(), watch.outside, watch.readings:
        try:
            watch.finish(model(*args, **kwargs))
        except AxeError:
            raise
        except Exception as error:
            first_line = next(iter(str(error).splitlines()), "")
            raise InvalidOption(
                f"{type(model).__name__} fails on the given args: {type(error).__name__}: "
                f"{first_line}"
            ) from error
    found = tuple(watch.found())
    entries: tuple[DotProduct, ...] = tuple(prove(product, targets) for product in found)
    joined, assumptions = sums(tuple(watch.joins.values()), found)
    targets.check_aliases([entry.aliases for entry in entries])
    return Certificate(
        entries=entries,
        excluded=excluded_names(entries, exclude),
        subject=type(model).__name__,
        tool_version=tool_version(),
        sums=joined,
        assumptions=assumptions,
    )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards each module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@dataclass
class _Watch:
    """What the hooks observed in one forward.

    Attributes:
        model: the observed model.
        args: of the forward; quantized ones are trusted to be what they declare.
        calls: layer name → its dot product, call by call.
        strays: module name → operations that multiply or add numbers outside any layer.
        stack: names of the modules that are running, innermost last.
        exact: id → bit-width tensor produced by a quantizer, of floats that of the exponent (kept
            alive so that ids stay unique).
        summed: id of such a bit width → integers of the sum of quantizers that gave it.
        fixed_zero_points, runtime_zero_points: id → zero point produced by a quantizer, likewise;
            the latter ones are computed at run time.
        attention: attention modules, which have products of their own.
        joins: every Add of results, by its name.
        results: id of a tensor → weak reference to it, and names of the layers whose results it
            adds up. The reference tells it from a later tensor with the same id.
        changing: whether a quantizer computes its scale at run time, so that no step is fixed.
        weights: id of a weight quantizer → its last output.
        intervals: of the values of tensors between layers.
    """

    model: nn.Module
    args: Sequence[Any]
    calls: dict[str, list[Found]] = field(default_factory=dict)
    strays: dict[str, set[str]] = field(default_factory=dict)
    stack: list[str] = field(default_factory=list)
    exact: dict[int, Tensor] = field(default_factory=dict)
    summed: dict[int, tuple[int, int]] = field(default_factory=dict)
    fixed_zero_points: dict[int, Tensor] = field(default_factory=dict)
    runtime_zero_points: dict[int, Tensor] = field(default_factory=dict)
    attention: dict[str, Attention] = field(default_factory=dict)
    joins: dict[str, Join] = field(default_factory=dict)
    results: dict[int, tuple[ref[Tensor], tuple[str, ...]]] = field(default_factory=dict)
    changing: bool = False
    weights: dict[int, object] = field(default_factory=dict)
    intervals: Intervals = field(default_factory=Intervals)

    def __post_init__(self) -> None:
        self.modules = dict(self.model.named_modules())
        self.layers = {n: m for n, m in self.modules.items() if self._kind(m)}
        for name, module in self.modules.items():
            if has_products(module):
                self.attention[name] = Attention(name, module)
        self.quantizers = {
            name
            for name, module in self.modules.items()
            if isinstance(module, QuantProxyFromInjector) and module.is_quant_enabled
        }
        self.outside = Outside(self._inside, self._stray, self._follow_sums)
        self.readings = Readings(self.intervals.known, self._inside, self._stray)
        self.outside.born(self.args)
        self.intervals.born(self.args, derived=False)
        for arg in self.args:
            self._mark_exact(arg)

    @staticmethod
    def _kind(module: nn.Module) -> str:
        if isinstance(module, QuantWeightBiasInputOutputLayer):
            return "quantized" if isinstance(module, nn.Linear | _ConvNd) else ""
        return "float" if isinstance(module, _FLOAT) else ""

    def _mark_exact(self, value: object, at_run_time: bool = False) -> None:
        if isinstance(value, FloatQuantTensor):
            self.exact[id(value.exponent_bit_width)] = value.exponent_bit_width
        if isinstance(value, IntQuantTensor):
            self.exact[id(value.bit_width)] = value.bit_width
            points = self.runtime_zero_points if at_run_time else self.fixed_zero_points
            points[id(value.zero_point)] = value.zero_point

    def _note_regions(self, module: object, output: object) -> None:
        """Notes the integers of a quantizer that adds up several; `regions` lists them."""
        parts = getattr(module, "regions", None)
        if parts and isinstance(output, IntQuantTensor):
            found = summed_range(output, [(p.scale, p.bit_width, p.signed) for p in parts])
            if found is not None:
                self.summed[id(output.bit_width)] = found

    def _inside(self) -> bool:
        """True while a quantizer runs, or a module that has an entry of its own."""
        return bool(self.stack and self.stack[-1] in self.attention) or self._in_unit()

    def _in_unit(self) -> bool:
        """True while a quantizer or a layer runs."""
        return any(name in self.layers or name in self.quantizers for name in self.stack)

    def _follow_sums(self, name: str, args: tuple, kwargs: dict, output: Any) -> None:
        """Notes additions of layers' results, and forgets results that are changed in place."""
        if not self._in_unit():
            self.intervals.follow(name, args, kwargs, output)
        if name in ("add", "add_") and len(args) == 2 and not kwargs:
            self.note_sum(*args, output)
        elif name.endswith("_") and args:
            self.results.pop(id(args[0]), None)  # changed in place: it is no longer the result

    def _stray(self, operation: str) -> None:
        self.strays.setdefault(self.stack[-1] if self.stack else "", set()).add(operation)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Context with hooks on every module; they are removed whatever happens."""
        with ExitStack() as stack:
            for name, module in self.modules.items():
                for hook in self._hooks_of(name, module):
                    stack.callback(hook.remove)
            for attention in self.attention.values():
                for hook in attention.hooks():
                    stack.callback(hook.remove)
            yield

    def _hooks_of(self, name: str, module: nn.Module) -> Iterator[Any]:
        def enter(_module: nn.Module, _args: tuple) -> None:
            self.stack.append(name)

        def leave(_module: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
            if isinstance(_module, ActQuantProxyFromInjectorBase) and _module.is_quant_enabled:
                self._mark_exact(output, at_run_time=_finds_zero_points(_module))
                self.changing |= isinstance(_module, DynamicActQuantProxyFromInjector)
                self._note_regions(_module, output)
            if isinstance(_module, TruncQuantProxyFromInjector) and _module.is_quant_enabled:
                # It clips to its own bit width and passes on the zero point of its input, scaled.
                self._mark_exact(output, at_run_time=bool(self.runtime_zero_points))
            if isinstance(_module, WeightQuantProxyFromInjectorBase):
                self.weights[id(_module)] = output
            if name in self.layers:
                self._record(name, _module, args, kwargs)
                if not getattr(getattr(_module, "output_quant", None), "is_quant_enabled", False):
                    self._keep_result(output, (name,))
            if name in self.layers or name in self.quantizers or name in self.attention:
                rounds = name in self.quantizers
                self.outside.born(output, (args, kwargs) if rounds else None)
                self.intervals.born(output, derived=not rounds)
            self.stack.pop()

        yield module.register_forward_pre_hook(enter)
        # Before other hooks, whose operations are outside of the layer.
        yield module.register_forward_hook(leave, with_kwargs=True, prepend=True)

    def _read(self, value: object, channel_axis: int | None) -> InputFact:
        if isinstance(value, FloatQuantTensor):
            fact = read_input(value, channel_axis, id(value.exponent_bit_width) in self.exact)
            self.intervals.check(value, fact.low, fact.high, numbers_of(value, "input").step)
            return fact
        if not isinstance(value, IntQuantTensor):
            return read_input(value, channel_axis, exact=False)
        exact = id(value.bit_width) in self.exact
        any_point = (
            bool(self.runtime_zero_points) and id(value.zero_point) not in self.fixed_zero_points
        )
        within = self.summed.get(id(value.bit_width))
        fact = read_input(value, channel_axis, exact, any_point, within)
        if within is None:
            self.intervals.check(value, fact.low, fact.high)
        return fact

    def _record(self, name: str, module: nn.Module, args: tuple, kwargs: dict) -> None:
        found = Found(name, type(module).__name__, layer=name)
        calls = self.calls.setdefault(name, [])
        if not isinstance(module, QuantWeightBiasInputOutputLayer):
            reason = _GATES if isinstance(module, _RECURRENT) else _UNQUANTIZED
            calls.append(replace(found, reason=reason))
            return
        found = replace(
            found, weight=f"{name}.weight", shape=tuple(module.get_parameter("weight").shape)
        )
        try:
            if method := overridden(module):
                raise Unprovable(
                    f"its class {type(module).__name__} replaces '{method}' of Brevitas's layer, "
                    "and nobody knows by what; use the layer itself"
                )
            given = args[0] if args else next(iter(kwargs.values()))
            arrived = module.input_quant(module.unpack_input(given))
            fact = self._read(arrived, 1 if isinstance(module, _ConvNd) else None)
            found = replace(found, input_type=fact.type, assumptions=fact.assumptions)
            integers, weight_type = layer_integers(
                module,
                arrived,
                fact,
                transposed=isinstance(module, _ConvTransposeNd),
                weight=self._weights_of(module),
            )
            calls.append(replace(found, integers=integers, weight_type=weight_type))
        except Unprovable as reason:
            calls.append(replace(found, reason=str(reason)))

    def _weights_of(self, module: Any) -> object:
        """What this call multiplied by: quantizing a large weight once more takes long."""
        used = self.weights.pop(id(module.weight_quant), None)
        return used if getattr(used, "shape", None) == module.weight.shape else None

    def _keep_result(self, output: object, names: tuple[str, ...]) -> None:
        if isinstance(output, IntQuantTensor):
            output = output.value
        if isinstance(output, Tensor):
            self.results[id(output)] = ref(output), names

    def _summed(self, tensor: object) -> tuple[str, ...]:
        """Names of the layers whose results a tensor adds up; () if it is no such sum."""
        kept, names = self.results.get(id(tensor), (None, ()))
        return names if kept is not None and kept() is tensor else ()

    def note_sum(self, left: object, right: object, output: object) -> None:
        """Called after every addition of two tensors."""
        mine, other = self._summed(left), self._summed(right)
        self.results.pop(id(output), None)
        if not (mine and other):
            return
        self._keep_result(output, (*mine, *other))
        inner = self.stack[-1] if self.stack else ""
        base = f"{inner}.add" if inner else "add"
        names, count = base, 0
        while names in self.joins and self.joins[names].terms != (*mine, *other):
            count += 1
            names = f"{base}_{count}"
        self.joins[names] = Join(names, (*mine, *other))

    def finish(self, output: Any) -> None:
        """Looks at the outputs of the model."""
        self.outside.check(output)
        if self.intervals.came_from_elsewhere(output, self.model):
            self._stray("numbers from elsewhere, such as another thread")

    def found(self) -> Iterator[Found]:
        """One dot product per layer (over all its calls), per attention product and per stray."""
        for name, module in self.layers.items():
            if self._kind(module) == "float" and self._part_of_float(name):
                continue
            unreached = Found(name, type(module).__name__, layer=name, reason=_NEVER_CALLED)
            product = join(self.calls.get(name) or [unreached])
            if self.changing and product.integers is not None:
                product = replace(product, integers=replace(product.integers, step=np.nan))
            yield product
        for attention in self.attention.values():
            yield from attention.found()
        for name, operators in self.strays.items():
            yield Found(
                name=f"{name or type(self.model).__name__}.forward",
                op=", ".join(sorted(operators)),
                reason="it multiplies or adds up numbers outside a Brevitas layer; use a quantized "
                "layer for it",
            )

    def _part_of_float(self, name: str) -> bool:
        """True for a part of a float layer (MultiheadAttention's out_proj), which is no entry."""
        parents = (name[:i] for i, letter in enumerate(name) if letter == ".")
        return any(parent in self.layers for parent in parents)


def _finds_zero_points(proxy: Any) -> bool:
    """True for a dynamic quantizer that is asymmetric."""
    if not isinstance(proxy, DynamicActQuantProxyFromInjector):
        return False
    fused: Any = proxy.fused_activation_quant_proxy
    return not isinstance(fused.tensor_quant.zero_point_impl, ZeroZeroPoint)
