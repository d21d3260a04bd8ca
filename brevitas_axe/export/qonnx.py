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
from typing import Any, ClassVar, Literal, cast, get_args

import numpy as np
import onnx
import torch
from brevitas.export.onnx.qonnx.handler import (
    BrevitasDecoupledWeightQuantWithInputProxyHandler,
    BrevitasWeightQuantProxyHandler,
)
from brevitas.export.onnx.qonnx.manager import QONNXDynamoManager, QONNXManager
from brevitas.proxy import (
    DecoupledWeightQuantProxyFromInjector,
    DecoupledWeightQuantWithInputProxyFromInjector,
    WeightQuantProxyFromInjector,
)
from qonnx.core.datatype import DataType
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_node, execute_onnx
from qonnx.transformation.extract_conv_bias import ExtractBiasFromConv
from qonnx.transformation.fold_constants import FoldConstants
from qonnx.transformation.gemm_to_matmul import GemmToMatMul
from qonnx.transformation.general import GiveUniqueNodeNames, RemoveStaticGraphInputs
from qonnx.transformation.infer_shapes import InferShapes
from torch import Tensor, nn

from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export.finn import check_finn
from brevitas_axe.files import write_whole
from brevitas_axe.model.layers import Layer, Proxy, find_layers, integer_weight
from brevitas_axe.model.proxies import AccumulatorAwareWeightQuantProxy
from brevitas_axe.model.rewrites import tensors_in
from brevitas_axe.model.running import evaluating, observe_inputs
from brevitas_axe.proof.certificate import Certificate, certify_file

# Who is to read the file: FINN, or any tool that knows QONNX.
Target = Literal["finn", "qonnx"]

# Key of the metadata (qonnx's `get_metadata_prop`) that lists the proven accumulators by node name.
ACCUMULATORS_KEY = "brevitas_axe.accumulators"
_WEIGHT_OPS = ("Quant", "BipolarQuant")
_TOLERANCE = 1e-4
# Factors of the example inputs on which file and model are compared, until they agree.
_NEARBY = tuple(1 - step / 64 for step in range(12))


class _ExactScale(BrevitasWeightQuantProxyHandler):
    """Writes the scale that the integers were read with; a statistic of them may be another."""

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


class _Manager(QONNXManager):
    handlers: ClassVar = [_WeightHandler, _DecoupledHandler, *QONNXManager.handlers]


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
    """Exports a Brevitas model whose file holds exactly the model's integers.

    Args:
        model: a Brevitas model; ours, or with A2Q, A2Q+ or ordinary integer weight quantizers.
        args: example input(s) of the forward.
        export_path: where the file goes; it appears whole or not at all.
        target: "finn" refuses what FINN would refuse or silently get wrong; "qonnx" refuses only
            what would be wrong in the file itself.
        dynamo: torch's newer exporter. FINN needs False (see the README).
        **kwargs: passed on to `torch.onnx.export`.

    Returns:
        The model as written: bias-free `MatMul` and `Conv` nodes whose outputs are annotated
        SCALEDINT<P> with the proven accumulator width, and qonnx metadata under
        `brevitas_axe.accumulators`.

    Warns:
        UserWarning: FINN would round ties otherwise than torch; `mend_for_finn` helps.

    Raises:
        ExportRefused: one sentence with the layer's name and the way out.
    """
    if target not in get_args(Target):
        raise InvalidOption(f"export target '{target}' is unknown; choose 'finn' or 'qonnx'.")
    args = args if isinstance(args, tuple) else (args,)
    layers = find_layers(model)
    observe_inputs(model, layers, args)
    solved = _solved_weights(layers)
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "model.onnx"
        with torch.no_grad(), _integer_exact_weights(layers, solved):
            with _explicit_padding(layers):
                _trace(model, args, raw, dynamo, kwargs)
            weights = {name: layer.weight.detach().cpu().numpy() for name, layer in layers.items()}
        proto = streamlined(_with_weight_names(onnx.load(raw), weights))
    certificate = certify_file(proto)
    _check_integers(proto, {name: integers.cpu().numpy() for name, (integers, _) in solved.items()})
    if target == "finn":
        _check_finn(proto)
    _check_output(model, args, proto)
    _annotate(proto, certificate)
    write_whole(export_path, proto.SerializeToString())
    return proto


def _solved_weights(layers: dict[str, Layer]) -> dict[str, tuple[Tensor, Tensor]]:
    """Integers and scale by layer; refuses what no QONNX file can hold, or no accelerator build."""
    solved = {}
    for name, layer in layers.items():
        if layer.weight.dtype != torch.float32:
            raise ExportRefused(
                f"layer '{name}' is in {layer.weight.dtype}, but QONNX computes in float32; "
                "convert the model by model.float() first."
            )
        solved[name] = integer_weight(name, layer)
        if not bool(solved[name][0].any()):
            raise ExportRefused(
                f"all weights of layer '{name}' are zero, which FINN cannot build; give it a "
                "wider accumulator or more weight bits."
            )
    return solved


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
    """Lets every layer hold integers × scale while it is traced."""
    saved = {name: layer.weight for name, layer in layers.items()}
    try:
        for name, (integers, scale) in solved.items():
            exact = (integers.double() * scale.double()).to(saved[name].dtype)
            # A parameter of its own, as a tied weight may have another scale elsewhere; set so
            # that Brevitas does not notice, which would build the quantizer anew.
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
        with evaluating(model), _plain_outputs(model), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracer warnings about Brevitas's own code
            manager.export(model, args=args, export_path=str(path), dynamo=dynamo, **kwargs)
    except BaseException:
        # Brevitas leaves a model in export mode when an export fails.
        if not dynamo or hasattr(model, "_brevitas_return_quant_tensor_state"):
            manager.set_export_mode(model, enabled=False)
        raise


@contextmanager
def _explicit_padding(layers: dict[str, Layer]) -> Iterator[None]:
    """Numbers for padding="same", whose ONNX form ONNX Runtime does not take with dilation."""
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
    """A model that ends in a quantizer gives its values, not every part of a QuantTensor."""

    def values(module: nn.Module, args: tuple, outputs: Any) -> Any:
        found = tensors_in(outputs)
        return found[0] if len(found) == 1 else tuple(found)

    handle = model.register_forward_hook(values)
    try:
        yield
    finally:
        handle.remove()


def _with_weight_names(proto: onnx.ModelProto, weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Calls every quantized weight `<layer>.weight`; dynamo loses these names."""
    wrapped = ModelWrapper(proto)
    unnamed = {name for name in weights if wrapped.get_initializer(f"{name}.weight") is None}
    for node in proto.graph.node:
        value = initializer(wrapped, node.input[0]) if node.input else None
        if node.op_type not in _WEIGHT_OPS or value is None:
            continue
        name = next((n for n in sorted(unnamed) if np.array_equal(weights[n], value)), None)
        if name is not None:
            unnamed.remove(name)
            wrapped.rename_tensor(node.input[0], f"{name}.weight")
    return wrapped.model


def streamlined(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Makes every accumulator a tensor of its own: no bias inside Conv or Gemm."""
    wrapped = ModelWrapper(proto)
    known = {name for node in proto.graph.node for name in (*node.input, *node.output)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # qonnx warns about opsets newer than its table
        # A caller could replace the weights of a file that lists them among its inputs.
        for step in (RemoveStaticGraphInputs(), InferShapes(), FoldConstants()):
            wrapped = wrapped.transform(step)
        _fold_biases(wrapped)
        for step in (
            GiveUniqueNodeNames(),
            GemmToMatMul(),
            ExtractBiasFromConv(),
            InferShapes(),
            GiveUniqueNodeNames(),
        ):
            wrapped = wrapped.transform(step)
    # qonnx gives new tensors random names; the same model must give the same file.
    for node in wrapped.graph.node:
        for index, name in enumerate(node.input):
            if name and name not in known:
                known.add(f"{node.name}_input_{index}")
                wrapped.rename_tensor(name, f"{node.name}_input_{index}")
    return wrapped.model


def _fold_biases(wrapped: ModelWrapper) -> None:
    """Writes quantized biases as the constants they are: FINN adds them to its thresholds."""
    for node in list(wrapped.graph.node):  # the loop takes nodes away
        bias = node.input[2] if len(node.input) > 2 else ""
        quantizer = wrapped.find_producer(bias)
        if node.op_type not in ("Conv", "ConvTranspose", "Gemm") or quantizer is None:
            continue
        if all(initializer(wrapped, name) is not None for name in quantizer.input):
            context = wrapped.make_empty_exec_context()
            execute_node(quantizer, context, wrapped.graph, 1)
            wrapped.set_initializer(bias, np.asarray(context[bias]))
            wrapped.graph.node.remove(quantizer)


def initializer(model: ModelWrapper, name: str) -> np.ndarray | None:
    """A constant of the file, None where the tensor is not one."""
    return cast("np.ndarray | None", model.get_initializer(name))


def _check_integers(proto: onnx.ModelProto, integers: dict[str, np.ndarray]) -> None:
    """The file's weight quantizers must give exactly the model's integers."""
    wrapped = ModelWrapper(proto)
    found = {}
    for node in proto.graph.node:
        weight = initializer(wrapped, node.input[0]) if node.input else None
        if node.op_type in _WEIGHT_OPS and weight is not None:
            scale = wrapped.get_initializer(node.input[1])
            ratio = weight / scale
            found[node.input[0]] = np.sign(ratio) if "Bip" in node.op_type else np.round(ratio)
    for name, expected in integers.items():
        actual = found.get(f"{name}.weight")
        if actual is None or not np.array_equal(actual, expected):
            raise ExportRefused(
                f"the exported weights of layer '{name}' are not the model's integers; export "
                "with dynamo=False, and report the layer if that does not help."
            )


def _check_output(model: nn.Module, args: tuple, proto: onnx.ModelProto) -> None:
    """The file must compute what the model computes.

    Float rounding can turn one integer, which spreads: in a deep net of few bits for one input in
    three. It does not do so for all nearby inputs, where a wrong file stays wrong.
    """
    errors = []
    for share in _NEARBY if any(arg.is_floating_point() for arg in args) else _NEARBY[:1]:
        nearby = tuple(arg * share if arg.is_floating_point() else arg for arg in args)
        errors.append(_output_error(model, nearby, proto))
        if errors[-1] <= _TOLERANCE:
            return
    raise ExportRefused(
        "the exported file computes something else than the model (difference "
        f"{min(errors):.3g}); please report the model's layers."
    )


def _output_error(model: nn.Module, args: tuple, proto: onnx.ModelProto) -> float:
    """Largest difference between file and model, relative to outputs larger than 1."""
    with evaluating(model), torch.no_grad():
        outputs = model(*args)
    wrapped = ModelWrapper(proto)
    names = [i.name for i in proto.graph.input if wrapped.get_initializer(i.name) is None]
    feed = {name: arg.cpu().numpy() for name, arg in zip(names, args, strict=True)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = execute_onnx(wrapped, feed)
    errors = []
    for output, item in zip(tensors_in(outputs), proto.graph.output, strict=True):
        expected = output.cpu().numpy()
        scale = max(1.0, float(np.abs(expected).max()))
        errors.append(float(np.abs(found[item.name] - expected).max()) / scale)
    return float(np.max(errors))  # NaN stays NaN


def _annotate(proto: onnx.ModelProto, certificate: Certificate) -> None:
    """Writes the proven widths on accumulator tensors and into the model's metadata."""
    wrapped = ModelWrapper(proto)
    accumulators = {}
    for entry in certificate.entries:
        if not entry.proven:
            continue
        node = next(n for n in proto.graph.node if n.name == entry.name)
        width = entry.outer_width or entry.width
        # Scaled: the tensor holds integers times the weight and input scales.
        wrapped.set_tensor_datatype(node.output[0], DataType[f"SCALEDINT<{width}>"])
        accumulators[entry.name] = {"layer": entry.layer, "bit_width": width}
    wrapped.set_metadata_prop(ACCUMULATORS_KEY, json.dumps(accumulators, sort_keys=True))
