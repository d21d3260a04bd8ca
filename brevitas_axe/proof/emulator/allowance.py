"""Limits memory and work of a run in proportion to its inputs, checked before each node."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx

from brevitas_axe.proof.graph.grid import Unprovable
from brevitas_axe.proof.graph.growth import branch_sizes, elements, output_shapes
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, shown, subgraphs
from brevitas_axe.proof.graph.operators import Kind, kind_of

# Elements of one array, of all arrays, and products, beside what the inputs' size allows.
_ONE, _ALL, _PRODUCTS = 2**24, 2**25, 2**32
_ONE_EACH, _ALL_EACH, _PRODUCTS_EACH = 64, 256, 2**16
# Elements that all nodes may read.
_READ, _READ_EACH = 2**27, 2**10
# Their outputs depend on values, and are no larger than their inputs times the number of axes.
_BY_VALUE = ("NonZero", "Compress", "Unique", "TopK", "Constant")
_SAME_SIZE = (Kind.STAY, Kind.UNARY, Kind.NORM, Kind.SUM, Kind.SQUARES)
_PRODUCTS_OF = (
    *("Conv", "ConvTranspose", "MatMul", "Gemm"),
    *("MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv"),
)
_QLINEAR = ("QLinearMatMul", "QLinearConv")  # their second operand is the fourth input
_POOLS = ("MaxPool", "AveragePool", "LpPool")
_REPEATED = ("Loop", "Scan", "SequenceMap")
# Nodes of ONNX Runtime that are prepared, about a millisecond each, beside what the size allows.
_NODES, _NODES_PER_INPUT = 2**12, 2**-8
# Inputs of one node that take as long to prepare as a node itself.
_FEEDS = 4


class Allowance:
    """Elements and products that one run of a file may still use.

    Args:
        file: the model.
        inputs: of the run, whose size and the initializers' decide what is allowed.
    """

    def __init__(self, file: ModelFile, inputs: Mapping[str, np.ndarray]) -> None:
        given = sum(np.size(array) for array in inputs.values())
        given += sum(prod(t.dims) for t in file.graph.initializer)
        self._file = file
        self._one, self._all = _ONE + _ONE_EACH * given, _ALL + _ALL_EACH * given
        self._products = _PRODUCTS + _PRODUCTS_EACH * given
        self._reads = _READ + _READ_EACH * given
        self._nodes = _NODES + int(_NODES_PER_INPUT * given)

    def check(self, proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray]) -> None:
        """Subtracts a standard node's outputs; raises Unprovable where they are too large."""
        name = shown(proto.name or next(iter(proto.output), proto.op_type))
        self._nodes -= 1 + len(feeds) // _FEEDS
        if self._nodes < 0:
            raise Unprovable("the file has more nodes than a file of its size may run")
        self._read(sum(map(np.size, feeds.values())), name)
        for graph in subgraphs(proto):
            self._check_branch(graph, feeds, name)
        if proto.op_type in _REPEATED:
            raise Unprovable(
                f"{proto.op_type} '{name}' cannot be run, because how often it repeats its body is "
                "not known before"
            )
        shapes = output_shapes(proto, feeds, self._file)
        if shapes is None:
            sizes = [np.size(array) * max(np.ndim(array), 1) for array in feeds.values()]
            if kind_of(proto) not in _SAME_SIZE and proto.op_type not in _BY_VALUE:
                raise Unprovable(
                    f"{shown(proto.op_type)} '{name}' cannot be run, because the size of its "
                    "results is not known before"
                )
            self._take(sum(sizes), name)
            return
        self._take(elements(shapes), name)
        self._work(proto, feeds, elements(shapes), name)

    def _check_branch(
        self, graph: onnx.GraphProto, feeds: Mapping[str, np.ndarray], name: str
    ) -> None:
        """What the nodes of a branch take, before it is known which branch is run."""
        sizes = branch_sizes(graph, feeds, self._file)
        kinds = {kind_of(node) for node in graph.node}
        nested = any(subgraphs(node) for node in graph.node)
        if sizes is None or None in kinds or nested:
            raise Unprovable(f"'{name}' cannot be run, because what its branches take is not known")
        self._take(sizes, name)

    def _work(
        self, proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray], outputs: int, name: str
    ) -> None:
        """Subtracts the products, or comparisons, that a node's outputs take."""
        node = Node(proto, name)
        if proto.op_type in _PRODUCTS_OF:
            self._multiply(proto, feeds, outputs, name)
        elif proto.op_type in _POOLS:
            self._spend(outputs * prod(node.attribute("kernel_shape", [1], "INTS")), name)
        elif proto.op_type == "LRN":
            self._spend(outputs * node.attribute("size", 1), name)
        elif kind_of(proto) is None and not subgraphs(proto):
            # An operator that is not known may look at every input for every output.
            numbers = [abs(a.i) for a in proto.attribute if a.i]
            self._spend(outputs * sum(map(np.size, feeds.values())) * prod(numbers), name)

    def check_custom(self, node: Node, context: Mapping[str, Any]) -> None:
        """`check` for a node of QONNX, whose parameters broadcast."""
        shapes = [np.shape(context[i]) for i in node.inputs if i in context]
        size = prod(shapes[0]) if shapes else 0
        self._read(sum(map(prod, shapes)), node.name)
        if node.op in ("Quant", "IntQuant", "BipolarQuant", "FloatQuant", "Trunc"):
            size = prod(np.broadcast_shapes(*shapes))
        if node.op == "MultiThreshold":
            size *= max(shapes[1][-1] // 8, 1)
        if node.op == "Im2Col":
            padded = prod(s + p for s, p in zip(shapes[0], (0, *[2**5] * 2, 0), strict=False))
            size = padded * prod(node.attribute("kernel_size", [1], "INTS"))
            if max(node.attribute("pad_amount", [0], "INTS"), default=0) > 2**4:
                raise Unprovable(f"Im2Col '{node.name}' pads by more than 16")
        self._take(size, node.name)

    def _multiply(
        self, proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray], outputs: int, name: str
    ) -> None:
        second = 3 if proto.op_type in _QLINEAR else 1
        shapes = [np.shape(feeds[proto.input[place]]) for place in (0, second)]
        length = prod(shapes[1][1:]) if "Conv" in proto.op_type else max(*shapes[0][-2:], 1)
        # Patches of one image are an array of their own.
        self._spend(outputs * length, name)
        patches = outputs // max(shapes[1][0], 1) * length if proto.op_type == "Conv" else 0
        if patches > max(self._all, self._one):
            raise Unprovable(f"'{name}' would take too many products for inputs of this size")

    def _spend(self, products: int, name: str) -> None:
        self._products -= products
        if self._products < 0:
            raise Unprovable(f"'{name}' would take too many products for inputs of this size")

    def _read(self, size: int, name: str) -> None:
        self._reads -= size
        if self._reads < 0:
            raise Unprovable(f"'{name}' would read more than inputs of this size allow")

    def _take(self, size: int, name: str) -> None:
        self._all -= size
        if size > self._one or self._all < 0:
            raise Unprovable(f"'{name}' would take too much memory for inputs of this size")
