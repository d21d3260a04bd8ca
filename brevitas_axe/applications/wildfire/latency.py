"""How long ONNX Runtime takes for one picture on this CPU, by files of float or of 8-bit integers.

Files of at most 8 bits become QDQ (QuantizeLinear, DequantizeLinear) by qonnx's own rewriting, and
give what they gave before. Fewer than 8 bits are 8-bit integers to ONNX Runtime, with a Clip that
keeps it from joining operators, so that they are not timed.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.qonnx_to_qcdq import QuantToQCDQ
from torch import Tensor, nn

_FIRST, _TIMED = 20, 200


def percentiles(file: str | Path, x: np.ndarray) -> tuple[float, float]:
    """Milliseconds of one run on one thread, p50 and p95."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: x}
    seconds = []
    for _ in range(_FIRST + _TIMED):
        start = time.perf_counter()
        session.run(None, feed)
        seconds.append(time.perf_counter() - start)
    p50, p95 = 1e3 * np.percentile(seconds[_FIRST:], [50, 95])
    return float(p50), float(p95)


def write_float(model: nn.Module, x: Tensor, file: str | Path) -> None:
    """Writes a float net as ONNX."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about the exporter that FINN's files need
        torch.onnx.export(model, (x,), str(file), dynamo=False)


def write_qdq(qonnx_file: str | Path, file: str | Path) -> None:
    """Writes a QONNX file of at most 8 bits as QDQ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of qonnx, about operator sets
        model = ModelWrapper(str(qonnx_file)).transform(QuantToQCDQ()).model
    _join_biases(model.graph)
    onnx.save(model, str(file))


def _join_biases(graph: onnx.GraphProto) -> None:
    """Conv, then Add of a constant → Conv with a bias, which ONNX Runtime computes in integers."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in [node for node in graph.node if node.op_type == "Conv" and len(node.input) == 2]:
        after = readers.get(node.output[0], [])
        if len(after) != 1 or after[0].op_type != "Add":
            continue
        [bias] = [name for name in after[0].input if name != node.output[0]]
        if bias not in constants:
            continue
        flat = numpy_helper.to_array(constants[bias]).reshape(-1)
        graph.initializer.append(numpy_helper.from_array(flat, f"{bias}_of_conv"))
        node.input.append(f"{bias}_of_conv")
        node.output[0] = after[0].output[0]
        graph.node.remove(after[0])
