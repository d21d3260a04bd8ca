"""ONNX Runtime for a single node of a graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime

from brevitas_axe.proof.graph.modelfile import captured

# Newest IR that ONNX Runtime 1.31 reads.
_IR_VERSION = 10
_ERRORS = 3  # among ONNX Runtime's severities: its warnings are about the cut-out node alone


def needed(proto: onnx.NodeProto) -> list[str]:
    """Tensors that a node reads, those of its subgraphs included."""
    return list(dict.fromkeys(i for i in (*proto.input, *captured(proto)) if i))


def renamed(
    proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray]
) -> tuple[onnx.NodeProto, Mapping[str, np.ndarray]]:
    """The node and its feeds under names that say nothing; branches keep the names they take."""
    if any(a.HasField("g") or a.graphs for a in proto.attribute):
        return proto, feeds
    names = {name: f"i{place}" for place, name in enumerate(dict.fromkeys(proto.input)) if name}
    alike = onnx.NodeProto()
    alike.CopyFrom(proto)
    alike.name = alike.doc_string = ""
    alike.input[:] = [names.get(name, "") for name in proto.input]
    alike.output[:] = [f"o{place}" if name else "" for place, name in enumerate(proto.output)]
    return alike, {names[name]: array for name, array in feeds.items()}


def session(
    proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray], whole: onnx.ModelProto
) -> onnxruntime.InferenceSession:
    """A session that can be kept for further samples.

    qonnx's execute_node builds a new one per call and per fixed shape, and searches the types of
    all tensors for it; this is the same execution with the shapes left open.

    Args:
        proto: a node of a standard operator, or a call of one of the model's local functions.
        feeds: arrays of the tensors that it needs, by name.
        whole: the model that it belongs to.
    """
    inputs = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), None
        )
        for name, array in feeds.items()
    ]
    outputs = [onnx.ValueInfoProto(name=name) for name in proto.output if name]
    graph = onnx.helper.make_graph([proto], "one", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=whole.opset_import)
    model.functions.extend(whole.functions)
    model.ir_version = min(whole.ir_version or _IR_VERSION, _IR_VERSION)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
