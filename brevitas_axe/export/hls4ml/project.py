"""Writes the input of hls4ml: a QONNX file, and a configuration with exact types."""

from __future__ import annotations

import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import yaml
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.transformation.channels_last import ConvertToChannelsLastAndClean
from qonnx.transformation.general import GiveUniqueParameterTensors
from qonnx.transformation.infer_shapes import InferShapes
from torch import Tensor, nn

from brevitas_axe.display import html_table
from brevitas_axe.errors import ExportRefused, InvalidOption
from brevitas_axe.export.hls4ml.check import check_streamlined
from brevitas_axe.export.hls4ml.rewrite import Dot, rewrite
from brevitas_axe.export.hls4ml.types import AUTO, exact_types
from brevitas_axe.export.qonnx import export_qonnx
from brevitas_axe.export.streamline import streamlined
from brevitas_axe.files import write_whole
from brevitas_axe.proof.certificate import Certificate, certify_file
from brevitas_axe.proof.graph.modelfile import read

MODEL = "model.onnx"
CONFIGURATION = "hls4ml.yml"
CERTIFICATE = "certificate.json"
# Default type, which hls4ml requires; no value of a graph gets it.
_DEFAULT = "fixed<16,6>"
_WARNINGS, _ERRORS = 2, 3


@dataclass(frozen=True, eq=False)
class Accumulator:
    """The accumulator of one layer, as the configuration gives it to hls4ml.

    Attributes:
        layer: module name, as in a Plan.
        node: its name in the file and in the configuration.
        type: hls4ml's fixed-point type.
        width: proven bits.
        bias_inside: True if the bias is added in it, False if behind it, with the channels' scales.
    """

    layer: str
    node: str
    type: str
    width: int
    bias_inside: bool


@dataclass(frozen=True, eq=False)
class Hls4mlProject:
    """The files that were written, and their contents.

    Attributes:
        folder: where the three files are.
        configuration: the dictionary of hls4ml.yml; `HLSConfig` is hls4ml's `hls_config`.
        accumulators: one per dot product, in execution order.
        certificate: of the graph that hls4ml reads, channels first.
    """

    folder: Path
    configuration: dict[str, Any]
    accumulators: tuple[Accumulator, ...]
    certificate: Certificate

    def __repr__(self) -> str:
        return f"Hls4mlProject in {self.folder}\n  {self.certificate!r}"

    def _repr_html_(self) -> str:
        rows = [
            (a.layer, a.type, a.width, "inside" if a.bias_inside else "behind")
            for a in self.accumulators
        ]
        headings = ("layer", "accum_t", "proven bits", "bias")
        files = html_table(f"Hls4mlProject in {self.folder}", headings, rows)
        return f"{files}\n{self.certificate._repr_html_()}"


def export_hls4ml(
    model: nn.Module | str | os.PathLike | onnx.ModelProto,
    folder: str | Path,
    args: Tensor | tuple | None = None,
    *,
    backend: str = "Vitis",
    io_type: str = "io_parallel",
    reuse_factor: int = 1,
    strategy: str = "Latency",
    channels_last_input: bool = False,
) -> Hls4mlProject:
    """Writes a model for hls4ml; every accumulator gets its proven width.

    Args:
        model: a Brevitas model with power-of-two activation scales, or a QONNX file of one.
        folder: for model.onnx, hls4ml.yml and certificate.json; created if it is missing.
        args: example input(s) of the forward, for a Brevitas model.
        backend: hls4ml's name of the tool that builds the result.
        io_type: "io_parallel" or "io_stream".
        reuse_factor: products per multiplier, passed on to hls4ml.
        strategy: "Latency" or "Resource", passed on to hls4ml.
        channels_last_input: the model takes [N, H, W, C], which saves a transposition.

    Raises:
        ExportRefused: hls4ml would refuse the model or compute something else.
        InvalidModelFile: the file is missing or corrupted.
        InvalidOption: a model without args.
    """
    proto = qonnx_of(model, args)
    for finding in check_streamlined(proto):
        if finding.severity != "note":
            raise ExportRefused(finding.sentence)
    graph, dots = rewrite(proto)
    last = channels_last(graph, channels_last_input)
    _check_same(proto, last, channels_last_input)
    options = {
        "Backend": backend,
        "IOType": io_type,
        "ReuseFactor": reuse_factor,
        "Strategy": strategy,
    }
    return write_project(graph, last, dots, Path(folder), options)


def write_project(
    graph: onnx.ModelProto,
    last: onnx.ModelProto,
    dots: list[Dot],
    folder: Path,
    options: dict[str, Any],
) -> Hls4mlProject:
    """Certifies a rewritten graph and writes its file and configuration.

    Args:
        graph: as `rewrite` gives it.
        last: the same in the layout of `channels_last`.
        dots: its dot products.
        folder: of the files.
        options: the user's options, by hls4ml's names.

    Raises:
        NotProven: a dot product has no proof.
    """
    certificate = certify_file(graph).require()
    types = exact_types(graph, dots, certificate)
    choices = {key: options[key] for key in ("ReuseFactor", "Strategy")}
    configuration = {
        "OnnxModel": MODEL,
        "OutputDir": "project",
        "ProjectName": "network",
        "Backend": options["Backend"],
        "Part": "xcvu13p-flga2577-2-e",
        "ClockPeriod": 5,
        "ClockUncertainty": "12.5%",
        "IOType": options["IOType"],
        "HLSConfig": {
            "Model": {"Precision": {"default": _DEFAULT}, **choices},
            "LayerName": _layers(last, types),
        },
    }
    write_whole(folder / MODEL, last.SerializeToString())
    text = yaml.safe_dump(configuration, sort_keys=False)
    write_whole(folder / CONFIGURATION, text.encode())
    certificate.save(folder / CERTIFICATE)
    return Hls4mlProject(
        folder, configuration, _accumulators(dots, types, certificate), certificate
    )


def qonnx_of(model: Any, args: Tensor | tuple | None) -> onnx.ModelProto:
    """The model as a streamlined QONNX graph."""
    if not isinstance(model, nn.Module):
        file = read(model)
        copied = onnx.ModelProto()
        copied.CopyFrom(file.model)
        return streamlined(copied)
    if args is None:
        raise InvalidOption("a Brevitas model is traced: give args, an example input.")
    with tempfile.TemporaryDirectory() as folder:
        return export_qonnx(model, args, Path(folder) / MODEL, target="qonnx")


def channels_last(proto: onnx.ModelProto, channels_last_input: bool) -> onnx.ModelProto:
    """Convolutions and pooling in the layout that hls4ml needs, under the same names."""
    model = ModelWrapper(proto, make_deepcopy=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in (
            InferShapes(),
            ConvertToChannelsLastAndClean(channels_last_input),
            InferShapes(),
            # hls4ml removes a constant with the first node that reads it.
            GiveUniqueParameterTensors(),
        ):
            model = model.transform(step)
    taken = {node.name for node in model.graph.node}
    moves = 0
    for node in model.graph.node:
        if not node.name:
            moves += 1
            while f"move_{moves}" in taken:
                moves += 1
            node.name = f"move_{moves}"
    _share_transposes(model.graph)
    _outputs_last(model.graph)
    ends = {value.name for value in (*model.graph.input, *model.graph.output)}
    for node in model.graph.node:
        # qonnx gives new tensors random names; the same model must give the same file.
        for index, tensor in enumerate(node.input):
            if tensor not in ends and model.get_initializer(tensor) is not None:
                model.rename_tensor(tensor, f"{node.name}_in_{index}")
        if node.output[0] not in ends:
            model.rename_tensor(node.output[0], f"{node.name}_out")
    return model.model


def _share_transposes(graph: onnx.GraphProto) -> None:
    """Merges the transpositions of several readers of one tensor.

    hls4ml removes the transposition of a single-channel input by changing the input's shape, which
    silently breaks a second one.
    """
    first: dict[tuple, str] = {}
    for node in list(graph.node):
        if node.op_type != "Transpose":
            continue
        perm = tuple(i for attribute in node.attribute for i in attribute.ints)
        kept = first.setdefault((node.input[0], perm), node.output[0])
        if kept != node.output[0]:
            for reader in graph.node:
                for index, tensor in enumerate(reader.input):
                    if tensor == node.output[0]:
                        reader.input[index] = kept
            graph.node.remove(node)


def _outputs_last(graph: onnx.GraphProto) -> None:
    """Moves the nodes of the outputs to the end: hls4ml orders outputs by nodes."""
    read = {tensor for node in graph.node for tensor in node.input}
    for value in graph.output:
        node = next((n for n in graph.node if value.name in n.output), None)
        if node is not None and not read & set(node.output):
            graph.node.remove(node)
            graph.node.append(node)


def _layers(proto: onnx.ModelProto, types: dict[str, dict[str, str]]) -> dict[str, Any]:
    """hls4ml's `LayerName`: every node and input, with its known types."""
    names = [*(value.name for value in proto.graph.input), *(n.name for n in proto.graph.node)]
    return {name: {"Precision": {"default": AUTO, **types.get(name, {})}} for name in names}


def _check_same(before: onnx.ModelProto, after: onnx.ModelProto, channels_last: bool) -> None:
    """Checks on random numbers that the rewritten graph computes the same as the graph."""
    generator = np.random.default_rng(0)
    feeds: list[dict[str, np.ndarray]] = [{}, {}]
    old, new = ModelWrapper(before), ModelWrapper(after)
    for first, second in zip(_inputs(before), after.graph.input, strict=True):
        shape = old.get_tensor_shape(first) or []
        values = generator.normal(scale=2.0, size=shape).astype(np.float32)
        feeds[0][first] = values
        moved = channels_last and len(shape) > 2
        feeds[1][second.name] = np.moveaxis(values, 1, -1).copy() if moved else values
    # onnxruntime warns about every node in qonnx's channels-last domain.
    onnxruntime.set_default_logger_severity(_ERRORS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            outputs = [
                list(execute_onnx(model, feed).values())
                for model, feed in zip((old, new), feeds, strict=True)
            ]
    finally:
        onnxruntime.set_default_logger_severity(_WARNINGS)
    for a, b in zip(*outputs, strict=True):
        if np.abs(a - b).max() > 1e-4 * max(1.0, float(np.abs(a).max())):
            raise ExportRefused(
                "the graph rewritten for hls4ml computes something else (difference "
                f"{float(np.abs(a - b).max()):.3g}); please report the model's layers."
            )


def _inputs(proto: onnx.ModelProto) -> list[str]:
    constants = {tensor.name for tensor in proto.graph.initializer}
    return [value.name for value in proto.graph.input if value.name not in constants]


def _accumulators(
    dots: list[Dot], types: dict[str, dict[str, str]], certificate: Certificate
) -> tuple[Accumulator, ...]:
    entries = {entry.name: entry for entry in certificate.entries}
    found = []
    for dot in dots:
        entry = entries[dot.name]
        width = (None if dot.affine else entry.width_with_bias) or entry.width or 0
        kind = types[dot.name]["accum"]
        found.append(Accumulator(dot.layer, dot.name, kind, width, not dot.affine))
    return tuple(found)
