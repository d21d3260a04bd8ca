"""Limits memory and work of a run in proportion to its inputs, checked before each node."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx

from brevitas_axe.proof.graph.grid import Unprovable
from brevitas_axe.proof.graph.growth import elements, output_shapes
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, shown
from brevitas_axe.proof.graph.operators import Kind, kind_of

# Elements of one array, of all arrays, and products, beside what the inputs' size allows.
_ONE, _ALL, _PRODUCTS = 2**24, 2**25, 2**32
_ONE_EACH, _ALL_EACH, _PRODUCTS_EACH = 64, 256, 2**16
# Their outputs depend on values, and are no larger than their inputs times the number of axes.
_BY_VALUE = ("NonZero", "Compress", "Unique", "TopK", "Constant")
_SAME_SIZE = (Kind.STAY, Kind.UNARY, Kind.NORM, Kind.SUM, Kind.SQUARES)
_PRODUCTS_OF = ("Conv", "ConvTranspose", "MatMul", "Gemm")


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

    def check(self, proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray]) -> None:
        """Subtracts a standard node's outputs; raises Unprovable where they are too large."""
        name = shown(proto.name or proto.op_type)
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
        if proto.op_type in _PRODUCTS_OF:
            self._multiply(proto, feeds, elements(shapes), name)

    def check_custom(self, node: Node, context: Mapping[str, Any]) -> None:
        """`check` for a node of QONNX, whose parameters broadcast."""
        shapes = [np.shape(context[i]) for i in node.inputs if i in context]
        size = prod(shapes[0]) if shapes else 0
        if node.op in ("Quant", "IntQuant", "BipolarQuant", "FloatQuant", "Trunc"):
            size = prod(np.broadcast_shapes(*shapes))
        if node.op == "MultiThreshold":
            size *= max(shapes[1][-1] // 64, 1)
        if node.op == "Im2Col":
            padded = prod(s + p for s, p in zip(shapes[0], (0, *[2**5] * 2, 0), strict=False))
            size = padded * prod(node.attribute("kernel_size", [1], "INTS"))
            if max(node.attribute("pad_amount", [0], "INTS"), default=0) > 2**4:
                raise Unprovable(f"Im2Col '{node.name}' pads by more than 16")
        self._take(size, node.name)

    def _multiply(
        self, proto: onnx.NodeProto, feeds: Mapping[str, np.ndarray], outputs: int, name: str
    ) -> None:
        shapes = [np.shape(feeds[i]) for i in proto.input[:2]]
        length = prod(shapes[1][1:]) if "Conv" in proto.op_type else max(*shapes[0][-2:], 1)
        # Patches of one image are an array of their own.
        self._products -= outputs * length
        patches = outputs // max(shapes[1][0], 1) * length if proto.op_type == "Conv" else 0
        if self._products < 0 or patches > max(self._all, self._one):
            raise Unprovable(f"'{name}' would take too many products for inputs of this size")

    def _take(self, size: int, name: str) -> None:
        self._all -= size
        if size > self._one or self._all < 0:
            raise Unprovable(f"'{name}' would take too much memory for inputs of this size")
