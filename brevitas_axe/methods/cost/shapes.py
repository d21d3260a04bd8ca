"""Shapes and widths of a Brevitas model's layers, seen in one forward."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple, cast

from brevitas import nn as qnn
from brevitas.proxy.runtime_quant import ActQuantProxyFromInjectorBase
from brevitas.quant_tensor import QuantTensor
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from brevitas_axe.accumulator import InputRange
from brevitas_axe.errors import MissingInputQuantizer
from brevitas_axe.methods.cost.protocol import PRODUCT, LayerShape
from brevitas_axe.model.apply.ranges import tensor_quantizer
from brevitas_axe.model.attention_calls import Product
from brevitas_axe.model.attention_products import noting_products, products_plan
from brevitas_axe.model.layers import (
    Layer,
    Proxy,
    find_layers,
    is_accumulator_aware,
    is_inside,
    layer_groups,
    unroll_weight,
)
from brevitas_axe.model.quantizers.operands import extra_bits
from brevitas_axe.model.running import first_input, hooked, observe_inputs
from brevitas_axe.plan import LayerPrecision, Plan

# Functions that FINN absorbs into the thresholds behind them; modules call them too.
_ABSORBED = ("relu", "batch_norm", "dropout")
# These too, where the other operand is a number or a constant of the model.
_AFFINE = ("add", "sub", "rsub", "mul", "div")


def layer_shapes(
    model: nn.Module, args: tuple, kwargs: dict | None = None, exclude: tuple[str, ...] = ()
) -> dict[str, LayerShape]:
    """Shape of every quantized layer that one forward calls, in the order of first execution.

    Behind them come the attention products whose operands are quantized.

    Costs count the whole forward, so give it one sample for costs per sample. A layer that is
    called twice has the positions of both calls.

    Args:
        model: a Brevitas model.
        args: positional arguments of one forward.
        kwargs: keyword arguments of that forward.
        exclude: names of layers to leave out.

    Raises:
        InvalidOption: the sample is empty.
        MissingInputQuantizer: a layer's input is not quantized to integers.
        UnsupportedLayer: as `find_layers`.
    """
    layers = find_layers(model, exclude)
    with _watching(model, layers) as (vectors, behind), noting_products(model) as products:
        calls = observe_inputs(model, layers, args, kwargs)
    shapes = {}
    for name, input_range in _input_ranges(calls).items():
        layer = layers[name]
        groups, rows, inputs = unroll_weight(layer, layer.weight).shape
        linear = isinstance(layer, qnn.QuantLinear)
        channels = layer.in_features if linear else layer.in_channels
        # Like qonnx, which lowers a convolution from one channel to one as depthwise.
        depthwise = not linear and groups == channels == groups * rows
        kind = "depthwise" if depthwise else "dense"
        shapes[name] = LayerShape(
            name=name,
            kind="transposed" if _is_transposed(layer) else kind,
            inputs=inputs,
            outputs=groups * rows,
            vectors=vectors[name],
            groups=layer_groups(layer),
            kernel=() if linear else tuple(layer.kernel_size),
            channels=channels,
            # A zero point near an end of the type makes the inputs effectively unsigned: they may
            # then be as large as 2^N.
            signed=input_range.low < 0
            and max(-input_range.low, input_range.high) <= 2 ** (input_range.bit_width - 1),
            output_bits=behind.bits.get(name),
            output_extra=behind.extra.get(name, 0),
        )
    mine = {name: product_shape(p) for name, p in products.items() if not is_inside(name, exclude)}
    return {**shapes, **mine}


def product_shape(product: Product) -> LayerShape:
    """An attention product as a matrix unit computes it: head after head, token after token."""
    return LayerShape(
        name=product.name,
        kind=PRODUCT,
        inputs=product.inputs,
        outputs=product.outputs,
        vectors=product.vectors,
        channels=product.inputs,
        signed=product.signed,
    )


def full_plan(
    model: nn.Module,
    args: tuple,
    kwargs: dict | None = None,
    exclude: tuple[str, ...] = (),
    plan: Plan | None = None,
) -> Plan:
    """A plan with every None replaced by what the model has, for all layers of `layer_shapes`.

    Args:
        model: a Brevitas model.
        args: positional arguments of one forward.
        kwargs: keyword arguments of that forward.
        exclude: names of layers to leave out.
        plan: what takes precedence; None to read the model alone.

    Raises:
        InvalidPlan: the plan names a layer that the model does not have.
        MissingInputQuantizer: a layer's input is not quantized to integers.
    """
    layers = find_layers(model, exclude)
    wanted = {} if plan is None else plan.layers
    products = {n: p for n, p in products_plan(model).layers.items() if not is_inside(n, exclude)}
    Plan(wanted).check_names((*layers, *products))
    ranges = _input_ranges(observe_inputs(model, layers, args, kwargs))
    full = {}
    for name, input_range in ranges.items():
        proxy = layers[name].weight_quant
        accumulator = getattr(proxy, "accumulator_bit_width", None)
        if is_accumulator_aware(layers[name]):
            accumulator = int(proxy.tensor_quant.pre_scaling_impl.accumulator_bit_width())
        present = LayerPrecision(
            weight=int(proxy.bit_width().max()),
            input=input_range.bit_width,
            accumulator=accumulator,
            tile=getattr(proxy, "accumulator_tile_size", None),
        )
        full[name] = present
    return Plan({name: _filled(p, wanted.get(name, p)) for name, p in {**full, **products}.items()})


def _filled(present: LayerPrecision, wanted: LayerPrecision) -> LayerPrecision:
    """What is wanted, and what is present where that says nothing."""
    return replace(present, **{key: bits for key, bits in vars(wanted).items() if bits is not None})


def _input_ranges(calls: Mapping[str, list[InputRange | None]]) -> dict[str, InputRange]:
    """Union of the ranges of every layer's calls."""
    ranges = {}
    for name, ranges_of_calls in calls.items():
        for input_range in ranges_of_calls:
            if input_range is None:
                raise MissingInputQuantizer(
                    f"the input of layer '{name}' is not quantized to integers, so its cost is "
                    f"not known; quantize it, or exclude the layer, exclude=('{name}',)."
                )
            ranges[name] = input_range.union(ranges.get(name, input_range))
    return ranges


class _Behind(NamedTuple):
    """Of the quantizers that take outputs, by layer: their bits, and those no plan tells."""

    bits: dict[str, int]
    extra: dict[str, int]


@contextmanager
def _watching(
    model: nn.Module, layers: Mapping[str, Layer]
) -> Iterator[tuple[dict[str, int], _Behind]]:
    """Notes output positions, and the quantizers that take outputs, during forwards."""
    vectors: dict[str, int] = {}
    behind = _Behind({}, {})
    trail = _Trail(model)

    def arrives(_: str, quantizer: Proxy, args: tuple, kwargs: dict) -> None:
        name = trail.source(first_input(args, kwargs))
        if name is not None and quantizer.is_quant_enabled:
            bits, extra = int(quantizer.bit_width().max()), extra_bits(tensor_quantizer(quantizer))
            behind.bits[name] = max(bits, behind.bits.get(name, 0))
            behind.extra[name] = max(extra, behind.extra.get(name, 0))

    def leaves(name: str, layer: Layer, args: tuple, kwargs: dict, output: object) -> None:
        value = _value(output)
        if _is_transposed(layer):
            positions = _value(first_input(args, kwargs)).numel() // layer.in_channels
        else:
            positions = value.numel() // unroll_weight(layer, layer.weight).shape[:2].numel()
        vectors[name] = vectors.get(name, 0) + positions
        if layer.output_quant.is_quant_enabled:
            behind.bits[name] = int(layer.output_quant.bit_width().max())
        else:
            trail.follow(name, value)

    quantizers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, ActQuantProxyFromInjectorBase)
    }
    with hooked(quantizers, before=arrives), hooked(layers, after=leaves), trail:
        yield vectors, behind


def _is_transposed(layer: Layer) -> bool:
    return getattr(layer, "transposed", False)  # torch's name; linear layers have none


class _Trail(TorchFunctionMode):
    """Follows outputs of layers through the functions that FINN absorbs into thresholds.

    Where two branches are added or an output is pooled, FINN's thresholds are a node of their own:
    there the trail ends.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._constants = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
        # The tensors are kept, so that their identities stay theirs.
        self._known: dict[int, tuple[str, Tensor]] = {}

    def follow(self, name: str, value: Tensor) -> None:
        self._known[id(value)] = (name, value)

    def source(self, x: object) -> str | None:
        """Name of the layer whose output arrives here, None where it is not known."""
        return self._known.get(id(_value(x)), (None,))[0]

    def __torch_function__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = self.source(args[0]) if args else None
        result = func(*args, **(kwargs or {}))
        if name is not None:
            value = _value(result)
            self._known.pop(id(value), None)  # an operation in place
            if self._is_absorbed(func.__name__.strip("_"), args):
                self.follow(name, value)
        return result

    def _is_absorbed(self, function: str, args: tuple) -> bool:
        constant = all(not isinstance(x, Tensor) or id(x) in self._constants for x in args[1:])
        return function in _ABSORBED or (function in _AFFINE and constant)


def _value(x: Any) -> Any:
    return cast(Any, x).value if isinstance(x, QuantTensor) else x
