"""FINN's estimates for single nodes: a JSON list of nodes on stdin, a list of results on stdout.

Runs in FINN's environment. A node is {"part", "op_type", "attributes"}, with "max_cycles" if FINN
is to choose PE and SIMD for it; a result holds LUT, DSP, BRAM_18K, URAM, cycles, PE and SIMD.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any
from unittest.mock import MagicMock

# FINN's LayerNorm imports torch at its top.
for _name in ("torch", "torch.nn", "torch.nn.functional"):
    sys.modules[_name] = MagicMock()

from finn.transformation.fpgadataflow.set_folding import SetFolding  # noqa: E402
from onnx import NodeProto, TensorProto, helper  # noqa: E402
from qonnx.core.modelwrapper import ModelWrapper  # noqa: E402
from qonnx.custom_op.registry import getCustomOp  # noqa: E402


def estimate(
    part: str, op_type: str, attributes: dict[str, Any], max_cycles: int | None = None
) -> dict[str, int]:
    node = helper.make_node(
        op_type,
        ["x", "w", "t"],
        ["y"],
        domain=f"finn.custom_op.fpgadataflow.{op_type.split('_')[-1]}",
        backend="fpgadataflow",
        **attributes,
    )
    if max_cycles is not None:
        node = folded(node, max_cycles)
    operator: Any = getCustomOp(node)
    resources = operator.node_res_estimation(part)
    kept = {key: int(resources[key]) for key in ("LUT", "DSP", "BRAM_18K", "URAM")}
    parallel = {key: operator.get_nodeattr(key) for key in ("PE", "SIMD") if key in attributes}
    return {**kept, **parallel, "cycles": int(operator.get_exp_cycles())}


def folded(node: NodeProto, max_cycles: int) -> NodeProto:
    """The node after SetFolding, in a graph of its own."""
    operator: Any = getCustomOp(node)
    before = _window(operator.get_nodeattr("Channels")) if "VVAU" in node.op_type else []
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y")]
    graph = helper.make_graph([*before, node], "one", ends[:1], ends[1:])
    model = ModelWrapper(helper.make_model(graph))
    model, _ = SetFolding(max_cycles, two_pass_relaxation=False).apply(model)
    return model.graph.node[-1]


def _window(channels: int) -> list[NodeProto]:
    """The sliding window that a depthwise node needs before it; of one pixel, so never slower."""
    attributes = {
        "IFMChannels": channels,
        "SIMD": 1,
        "ConvKernelDim": [1, 1],
        "IFMDim": [1, 1],
        "OFMDim": [1, 1],
        "Stride": [1, 1],
        "Dilation": [1, 1],
        "inputDataType": "INT8",
        "outputDataType": "INT8",
        "depthwise": 1,
    }
    return [
        helper.make_node(
            "ConvolutionInputGenerator_rtl",
            ["in"],
            ["x"],
            domain="finn.custom_op.fpgadataflow.rtl",
            backend="fpgadataflow",
            **attributes,
        )
    ]


if __name__ == "__main__":
    logging.disable()  # FINN warns of every target that it misses
    results = [estimate(**node) for node in json.load(sys.stdin)]
    print(json.dumps(results))
