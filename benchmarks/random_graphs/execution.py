"""Runs a graph by qonnx and ONNX Runtime, for a batch that the file need not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import groupby

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from qonnx.core.execute_custom_node import execute_custom_node
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx

from benchmarks.random_graphs.builder import CHANNELS_LAST, QONNX

Context = dict[str, np.ndarray]
_CUSTOM = ("Quant", "IntQuant", "BipolarQuant", "Trunc", "MultiThreshold", "DebugMarker")


class Run:
    """A model, compiled once; a call executes it and returns every tensor.

    Nodes of QONNX are executed by qonnx, all others by ONNX Runtime.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = onnx.ModelProto()
        self._model.CopyFrom(model)
        self._constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        for node in self._model.graph.node:
            if node.op_type in _CUSTOM and node.domain != QONNX:
                node.domain = QONNX  # names that qonnx has given up
        self._steps: list[Callable[[Context], None]] = []
        nodes = self._model.graph.node
        for kind, group in groupby(nodes, lambda n: (_kind(n), n.name if _kind(n) else "")):
            self._steps.append(self._compiled(kind[0], list(group)))

    def __call__(self, feeds: Mapping[str, np.ndarray]) -> Context:
        context: Context = {**self._constants, **feeds}
        for step in self._steps:
            step(context)
        return context

    def _compiled(self, kind: str, nodes: list[onnx.NodeProto]) -> Callable[[Context], None]:
        if kind == "qonnx":

            def custom(context: Context) -> None:
                execute_custom_node(nodes[0], context, self._model.graph, 2)

            return custom
        last = kind == "last"
        run = self._standard([_channels_first(n) for n in nodes] if last else nodes)
        if not last:
            return run
        moved = nodes[0].input[: 2 if nodes[0].op_type == "Conv" else 1]

        def channels_last(context: Context) -> None:
            turned = {name: np.moveaxis(context[name], -1, 1).copy() for name in moved}
            inner = {**context, **turned}
            run(inner)
            context[nodes[0].output[0]] = np.moveaxis(inner[nodes[0].output[0]], 1, -1).copy()

        return channels_last

    def _standard(self, nodes: list[onnx.NodeProto]) -> Callable[[Context], None]:
        made = [o for node in nodes for o in node.output if o]
        needed = [i for node in nodes for i in (*node.input, *_captured(node)) if i]
        needed = [i for i in dict.fromkeys(needed) if i not in made]
        sessions: dict[str, onnxruntime.InferenceSession] = {}

        def run(context: Context) -> None:
            feeds = {name: np.asarray(context[name]) for name in needed}
            if not sessions:
                sessions["one"] = self._session(nodes, feeds, made)
            context.update(zip(made, sessions["one"].run(made, feeds), strict=True))

        return run

    def _session(
        self, nodes: list[onnx.NodeProto], feeds: Context, made: list[str]
    ) -> onnxruntime.InferenceSession:
        kinds = {n: helper.np_dtype_to_tensor_dtype(v.dtype) for n, v in feeds.items()}
        inputs = [
            helper.make_tensor_value_info(
                n, k, list(feeds[n].shape) if n in self._constants else [None] * feeds[n].ndim
            )
            for n, k in kinds.items()
        ]
        graph = helper.make_graph(
            nodes, "part", inputs, [onnx.ValueInfoProto(name=n) for n in made]
        )
        model = helper.make_model(graph, opset_imports=self._model.opset_import)
        model.functions.extend(self._model.functions)
        model.ir_version = self._model.ir_version
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def by_qonnx(model: onnx.ModelProto, context: Context, feeds: Context) -> Context:
    """The same tensors by qonnx's own execute_onnx, which wants every shape declared.

    Args:
        model: the file.
        context: every tensor, of the same batch.
        feeds: graph inputs.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    for node in graph.node:
        node.domain = QONNX if node.op_type in _CUSTOM else node.domain
    imported = {o.domain for o in copy.opset_import}
    for entry in copy.opset_import:
        entry.domain = "" if entry.domain == "ai.onnx" else entry.domain
    del graph.input[:], graph.output[:]
    kinds = {n: helper.np_dtype_to_tensor_dtype(np.asarray(v).dtype) for n, v in context.items()}
    declared = {n: helper.make_tensor_value_info(n, k, np.shape(context[n]))
                for n, k in kinds.items()}  # fmt: skip
    constants = {t.name for t in graph.initializer}
    last = graph.node[-1].output[0]
    graph.input.extend(declared[name] for name in feeds)
    graph.output.append(declared[last])
    rest = [n for n in declared if n not in feeds and n not in constants and n != last]
    graph.value_info.extend(declared[name] for name in rest)
    assert imported
    return execute_onnx(ModelWrapper(copy), dict(feeds), return_full_exec_context=True)


def _kind(node: onnx.NodeProto) -> str:
    if node.domain == CHANNELS_LAST or node.op_type == "MaxPoolNHWC":
        return "last"
    return "qonnx" if node.op_type in _CUSTOM else ""


def _channels_first(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.domain, copy.op_type = "", node.op_type.removesuffix("NHWC")
    return copy


def _captured(node: onnx.NodeProto) -> list[str]:
    return [i for a in node.attribute if a.HasField("g") for n in a.g.node for i in n.input]
