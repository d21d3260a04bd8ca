"""Writes a Brevitas model as QONNX: integer-exact weights, proven accumulators annotated.

Since Brevitas 0.12.1 its own export writes `Quant(raw weight)`, which drops whatever a quantizer
does beyond rounding: A2Q's norm and zero-centring, and our projection. Here the weights that are
traced are integers × scale, so that rounding gives exactly these integers back, and the file is
read again and compared with the model before it appears under its name.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import onnx
import torch
from brevitas.core.quant import RescalingIntQuant
from brevitas.export.onnx.qonnx.function import BrevitasQuantOp
from brevitas.export.onnx.qonnx.handler import (
    BrevitasActQuantProxyHandler,
    BrevitasDecoupledWeightQuantWithInputProxyHandler,
    BrevitasWeightQuantProxyHandler,
)
from brevitas.export.onnx.qonnx.manager import QONNXDynamoManager, QONNXManager
from brevitas.proxy import (
    ActQuantProxyFromInjector,
    DecoupledWeightQuantProxyFromInjector,
    DecoupledWeightQuantWithInputProxyFromInjector,
    WeightQuantProxyFromInjector,
)
from qonnx.core.datatype import DataType
from torch import Tensor, nn

from brevitas_axe.errors import AxeError, ExportRefused, InvalidOption
from brevitas_axe.export.comparison import check_output, check_rewritten
from brevitas_axe.export.finn import check_finn
from brevitas_axe.export.finn.tokens import in_tokens
from brevitas_axe.export.indexed import IndexedGraph
from brevitas_axe.export.integers import WEIGHT_OPS, check_integers, solved_weights
from brevitas_axe.export.products import with_product_names
from brevitas_axe.export.streamline import streamlined
from brevitas_axe.files import write_whole
from brevitas_axe.model.devices import input_device, moved
from brevitas_axe.model.layers import Layer, Proxy, find_layers
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.quantizers.two_region import Region, TwoRegionActQuantProxy
from brevitas_axe.model.rewrites import tensors_in
from brevitas_axe.model.running import evaluating, observe_inputs
from brevitas_axe.proof.certificate import Certificate, certify_file

# Reader of the file: FINN, or any tool that supports QONNX.
Target = Literal["finn", "qonnx"]

# Key of the metadata (qonnx's `get_metadata_prop`) that lists the proven accumulators by node name.
ACCUMULATORS_KEY = "brevitas_axe.accumulators"


class _ExactScale(BrevitasWeightQuantProxyHandler):
    """Writes the scale with which the integers were read; their statistics may give another."""

    def prepare_for_export(self, module: Proxy) -> None:
        super().prepare_for_export(module)
        if hasattr(module, "exact_scale"):
            self.symbolic_kwargs["scale"] = module.exact_scale


class _WeightHandler(_ExactScale):
    handled_layer = (WeightQuantProxyFromInjector, AccumulatorAwareWeightQuantProxy)


class _DecoupledHandler(_ExactScale, BrevitasDecoupledWeightQuantWithInputProxyHandler):
    handled_layer = (
        DecoupledWeightQuantProxyFromInjector,
        DecoupledWeightQuantWithInputProxyFromInjector,
    )


class _TwoRegionHandler(BrevitasActQuantProxyHandler):
    """Writes the quantizers that an input is the sum of, and their Add."""

    handled_layer = TwoRegionActQuantProxy

    def prepare_for_export(self, module: Proxy) -> None:
        super().prepare_for_export(module)
        self.regions: tuple[Region, ...] = module.regions if module.is_quant_enabled else ()

    def symbolic_execution(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        scale, zero = self.symbolic_kwargs["scale"], self.symbolic_kwargs["zero_point"]
        parts = []
        for part in self.regions:
            shifted = x - part.offset if part.offset else x
            widths = torch.tensor(float(part.bit_width))
            step = scale * (part.scale / self.regions[0].scale)
            options = (widths, 0, part.signed, "ROUND")
            parts.append(self.export_op(BrevitasQuantOp, shifted, step, zero, *options))
        return sum(parts[1:], parts[0]), scale, zero, self.symbolic_kwargs["bit_width"]


class _Manager(QONNXManager):
    # Their time grows with the square of the graph, and `streamlined` does the same by an index.
    run_onnx_passes = False
    handlers: ClassVar = [
        *(_WeightHandler, _DecoupledHandler, _TwoRegionHandler),
        *QONNXManager.handlers,
    ]


class _DynamoManager(QONNXDynamoManager):
    handlers: ClassVar = _Manager.handlers


def export_qonnx(
    model: nn.Module,
    args: Tensor | tuple,
    export_path: str | Path,
    *,
    target: Target = "finn",
    dynamo: bool = False,
    **kwargs,
) -> onnx.ModelProto:
    """Exports a Brevitas model to a file with exactly the model's integers.

    Args:
        model: a Brevitas model with our, A2Q, A2Q+ or ordinary integer weight quantizers.
        args: example input(s) of the forward; moved to the model's device.
        export_path: path of the file, which appears whole or not at all.
        target: "finn" refuses what FINN would refuse or silently get wrong, and writes a
            transformer in the form that FINN builds (`brevitas_axe.export.finn.tokens`); "qonnx"
            refuses only what would be wrong in the file itself.
        dynamo: torch's newer exporter. FINN needs False (see the README).
        **kwargs: passed on to `torch.onnx.export`.

    Returns:
        The model as written: bias-free `MatMul` and `Conv` nodes whose outputs are annotated
        SCALEDINT<P> with the proven accumulator width, and qonnx metadata under
        `brevitas_axe.accumulators`.

    Warns:
        UserWarning: FINN would round ties differently from torch; `mend_for_finn` removes them.

    Raises:
        ExportRefused: one sentence with the layer's name and the way out.
    """
    if target not in get_args(Target):
        raise InvalidOption(f"export target '{target}' is unknown; choose 'finn' or 'qonnx'.")
    inputs: tuple = args if isinstance(args, tuple) else (args,)
    args = moved(inputs, input_device(model))
    assert isinstance(args, tuple)
    _refuse_single_bits(model)
    layers = find_layers(model)
    observe_inputs(model, layers, args)
    solved = solved_weights(layers)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "model.onnx"
        with torch.no_grad(), _integer_exact_weights(layers, solved):
            with _explicit_padding(layers):
                _trace(model, args, raw, dynamo, kwargs)
            weights = {name: layer.weight.detach().cpu().numpy() for name, layer in layers.items()}
        proto = streamlined(_with_weight_names(onnx.load(raw), weights))
    proto = with_product_names(proto)
    check_integers(proto, {name: integers.cpu().numpy() for name, (integers, _) in solved.items()})
    plain, proto = proto, in_tokens(proto) if target == "finn" else proto
    certificate = certify_file(proto)
    if target == "finn":
        _check_finn(proto)
    check_output(model, args, plain)
    if proto is not plain:
        check_rewritten(plain, args, proto)
    _annotate(proto, certificate)
    write_whole(export_path, proto.SerializeToString())
    return proto


def _refuse_single_bits(model: nn.Module) -> None:
    """Refuses integers of one bit in activations, which Brevitas writes as signs."""
    for name, proxy in model.named_modules():
        if not isinstance(proxy, ActQuantProxyFromInjector) or not proxy.is_quant_enabled:
            continue
        quant = getattr(proxy.fused_activation_quant_proxy, "tensor_quant", None)
        if isinstance(quant, RescalingIntQuant) and proxy.bit_width() == 1:
            raise ExportRefused(
                f"the activation quantizer '{name}' has integers of one bit, which QONNX does not "
                "have for activations; use 2 bits, or a sign (SignedBinaryActPerTensorConst)."
            )


def _check_finn(proto: onnx.ModelProto) -> None:
    findings = check_finn(proto)
    for finding in findings:
        if finding.severity != "tie":
            raise ExportRefused(finding.sentence)
    for finding in findings:
        warnings.warn(finding.sentence, stacklevel=3)


@contextmanager
def _integer_exact_weights(
    layers: dict[str, Layer], solved: dict[str, tuple[Tensor, Tensor]]
) -> Iterator[None]:
    """Context in which the weights of every layer are integers × scale, for tracing."""
    saved = {name: layer.weight for name, layer in layers.items()}
    try:
        for name, (integers, scale) in solved.items():
            exact = (integers.double() * scale.double()).to(saved[name].dtype)
            # A parameter of its own, as a tied weight may have another scale elsewhere. Not by
            # setattr: Brevitas would then build the quantizer again.
            layers[name]._parameters["weight"] = nn.Parameter(exact, requires_grad=False)
            layers[name].weight_quant.exact_scale = scale
        yield
    finally:
        for name, weight in saved.items():
            layers[name]._parameters["weight"] = weight
            vars(layers[name].weight_quant).pop("exact_scale", None)


def _trace(model: nn.Module, args: tuple, path: Path, dynamo: bool, kwargs: dict) -> None:
    manager = _DynamoManager if dynamo else _Manager
    if dynamo:
        kwargs = {"optimize": True, "external_data": False, "verbose": False, **kwargs}
    try:
        with (
            evaluating(model),
            _own_caches(model),
            _plain_outputs(model),
            _unchecked_graph(),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # tracer warnings about Brevitas's own code
            manager.export(model, args=args, export_path=str(path), dynamo=dynamo, **kwargs)
    except BaseException as error:
        # Brevitas leaves a model in export mode when an export fails.
        if not dynamo or hasattr(model, "_brevitas_return_quant_tensor_state"):
            manager.set_export_mode(model, enabled=False)
        if isinstance(error, AxeError) or not isinstance(error, Exception):
            raise
        first = next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")
        raise ExportRefused(
            f"torch cannot write the model as ONNX: {first}; compute that with operators that ONNX "
            "has, or export the part of the model before it."
        ) from error


@contextmanager
def _own_caches(model: nn.Module) -> Iterator[None]:
    """Restores what quantizers keep of a forward, and whether they do.

    Brevitas leaves what it kept for its export, and quantizers then tell the scale and the bits of
    that forward, whatever they get afterwards.
    """
    kept = [
        (module, {k: v for k, v in vars(module).items() if k.startswith(("_cached", "cache_"))})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, values in kept:
            vars(module).update(values)


@contextmanager
def _unchecked_graph() -> Iterator[None]:
    """Spares the exporter of torch its checks of its own graph between two steps.

    They change nothing, and search lists: beyond a thousand nodes they take most of the time.
    """
    check = torch._C._jit_pass_lint
    torch._C._jit_pass_lint = lambda graph: None
    try:
        yield
    finally:
        torch._C._jit_pass_lint = check


@contextmanager
def _explicit_padding(layers: dict[str, Layer]) -> Iterator[None]:
    """Replaces padding="same" by numbers, since ONNX Runtime has no such form with dilation."""
    saved = {}
    for name, layer in layers.items():
        if getattr(layer, "padding", None) == "same":
            totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            if all(total % 2 == 0 for total in totals):
                saved[name] = layer.padding
                layer.padding = tuple(total // 2 for total in totals)
    try:
        yield
    finally:
        for name, padding in saved.items():
            layers[name].padding = padding


@contextmanager
def _plain_outputs(model: nn.Module) -> Iterator[None]:
    """Context in which a model returns plain values instead of the parts of a QuantTensor."""

    def values(module: nn.Module, args: tuple, outputs: Any) -> Any:
        found = tensors_in(outputs)
        return found[0] if len(found) == 1 else tuple(found)

    handle = model.register_forward_hook(values)
    try:
        yield
    finally:
        handle.remove()


def _with_weight_names(proto: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Names every quantized weight `<layer>.weight`; dynamo loses these names."""
    graph = IndexedGraph(proto)
    unnamed = [name for name in sorted(weights) if f"{name}.weight" not in graph.constants]
    if not unnamed:
        return proto
    by_value: dict[tuple, list[str]] = {}
    for name in unnamed:
        by_value.setdefault(_digest(weights[name]), []).append(name)
    renamed = {}
    for node in graph.nodes:
        if node.op_type not in WEIGHT_OPS or node.input[0] not in graph.constants:
            continue
        same = by_value.get(_digest(graph.array(node.input[0])))
        if same and node.input[0] not in renamed:
            renamed[node.input[0]] = f"{same.pop(0)}.weight"
    graph.rename(renamed)
    return graph.model()


def _digest(values: np.ndarray) -> tuple:
    """A key that is equal for equal arrays only."""
    return values.shape, values.dtype, values.tobytes()


def _annotate(proto: onnx.ModelProto, certificate: Certificate) -> None:
    """Writes the proven widths on accumulator tensors and into the model's metadata."""
    outputs = {node.name: node.output[0] for node in proto.graph.node}
    accumulators, types = {}, {}
    for entry in certificate.entries:
        if entry.proven:
            width = entry.outer_width or entry.width
            # Scaled: the tensor is integers times the weight and input scales.
            types[outputs[entry.name]] = DataType[f"SCALEDINT<{width}>"].name
            accumulators[entry.name] = {"layer": entry.layer, "bit_width": width}
    annotations = proto.graph.quantization_annotation
    others = [entry for entry in annotations if entry.tensor_name not in types]
    del annotations[:]
    annotations.extend(others)
    for tensor, name in types.items():
        entry = annotations.add(tensor_name=tensor)
        entry.quant_parameter_tensor_names.add(key="finn_datatype", value=name)
    listed = json.dumps(accumulators, sort_keys=True)
    # Where qonnx's `get_metadata_prop` looks.
    proto.graph.metadata_props.add(key=ACCUMULATORS_KEY, value=listed)
