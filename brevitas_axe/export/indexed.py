"""A QONNX graph whose tensors are found by name, and the steps that every export and check needs.

qonnx's ModelWrapper searches a list for every type, constant and producer, and its steps start
again after each node that they change: their time grows with the square of the graph. These are the
same steps with an index, and give the same graphs.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

import numpy as np
import onnx
import onnx.shape_inference
from onnx import helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp, is_custom_op

from brevitas_axe.export.execution import QUANTIZERS, run_node
from brevitas_axe.proof.emulator.session import needed
from brevitas_axe.proof.graph.operators import CHANNELS_LAST

# A constant with more elements is not a shape.
_SHAPE = 64
_BROADCAST = ("Quant", "IntQuant", "FloatQuant")
# Whether a node may be run on these arrays.
Allowed = Callable[[onnx.NodeProto, Mapping[str, np.ndarray]], bool]
_COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Sum")


class IndexedGraph:
    """The main graph of a model, taken apart; `model` puts it together again.

    Attributes:
        whole: the model; its main graph is as of the last call of `model`.
        nodes: in their order.
        constants: initializers by name.
        types: element type and shape of tensors by name, inputs and outputs of the graph included.
        opaque: tensors whose shapes are not to be inferred.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.whole = onnx.ModelProto()
        self.whole.CopyFrom(model)
        graph = self.whole.graph
        self.nodes = list(graph.node)
        self.opaque: frozenset[str] = frozenset()
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.types: dict[str, onnx.ValueInfoProto] = {}
        # A caller could replace the weights of a file that lists them among its inputs.
        inputs = [value for value in graph.input if value.name not in self.constants]
        for value in (*graph.value_info, *graph.input, *graph.output):
            self.types[value.name] = value
        _replace(graph.input, inputs)
        self._ends = {value.name for value in (*inputs, *graph.output)}
        read = {name for node in self.nodes for name in (*needed(node), *node.output)}
        self._taken, self._count = {*self.types, *self.constants, *read}, 0

    def model(self) -> onnx.ModelProto:
        """The whole model as it is now: unused tensors dropped, nodes sorted."""
        self._sort()
        for node in self.nodes:
            self._constants_last(node)
        used = {name for node in self.nodes for name in (*needed(node), *node.output)}
        for name in self.constants:
            if name not in self.types:
                self.set_constant(name, self.array(name))
        whole, graph = self.whole, self.whole.graph
        _replace(graph.node, self.nodes)
        _replace(graph.initializer, [t for n, t in self.constants.items() if n in used])
        inner = [v for n, v in self.types.items() if n in used and n not in self._ends]
        _replace(graph.value_info, inner)
        kept = [a for a in graph.quantization_annotation if a.tensor_name in used]
        _replace(graph.quantization_annotation, kept)
        self.nodes = list(graph.node)
        return whole

    def array(self, name: str) -> np.ndarray:
        """Values of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def set_constant(self, name: str, values: np.ndarray) -> None:
        """Makes a tensor a constant of the file."""
        self.constants[name] = numpy_helper.from_array(np.asarray(values), name)
        self.set_type(name, self.constants[name].data_type, np.shape(values))

    def shape(self, name: str) -> tuple[int, ...] | None:
        """Shape of a tensor, None where a dimension is not known."""
        kind = self.types[name].type.tensor_type if name in self.types else None
        if kind is None or not kind.HasField("shape"):
            return tuple(self.constants[name].dims) if name in self.constants else None
        dims = kind.shape.dim
        return tuple(d.dim_value for d in dims) if all(d.dim_value for d in dims) else None

    def set_type(self, name: str, element: int, shape: Iterable[int] | None) -> None:
        """Sets type and shape of an inner tensor of the graph."""
        if name not in self._ends:
            dims = None if shape is None else list(shape)
            self.types[name] = helper.make_tensor_value_info(name, element, dims)

    def infer_shapes(self) -> None:
        """Adds the types that follow from those of the inputs.

        Nodes that onnx does not know are replaced for it by ones of the same shapes.
        """
        whole, lookup = self.model(), _Lookup(self)
        question = onnx.ModelProto(ir_version=whole.ir_version, functions=whole.functions)
        question.opset_import.extend(whole.opset_import)
        graph = question.graph
        for field in ("input", "output", "value_info"):
            getattr(graph, field).extend(getattr(whole.graph, field))
        # Large constants are no shapes; a message may not grow beyond 2 GiB.
        graph.initializer.extend(t for t in whole.graph.initializer if _elements(t) <= _SHAPE)
        for node in self.nodes:
            if not self.opaque.isdisjoint(node.output):
                continue
            graph.node.append(_stand_in(node, lookup) if is_custom_op(node.domain) else node)
        inferred = onnx.shape_inference.infer_shapes(question).graph
        for value in (*inferred.value_info, *inferred.output):
            self.types[value.name] = value
        _replace(whole.graph.output, list(inferred.output))

    def fold_constants(
        self, kept: Collection[str] = QUANTIZERS, allowed: Allowed = lambda node, feeds: True
    ) -> None:
        """Computes what follows from constants alone.

        Args:
            kept: operators that stay.
            allowed: whether a node may be run, asked before it is.
        """
        self.infer_shapes()
        while self._fold_once(kept, allowed):
            self.infer_shapes()  # a shape that is a constant now may tell others

    def _fold_once(self, kept: Collection[str], allowed: Allowed) -> bool:
        arrays = {name: numpy_helper.to_array(t) for name, t in self.constants.items()}
        remaining = []
        for node in self.nodes:
            known = all(name in arrays for name in needed(node))
            if node.op_type == "Shape" and not known:
                shape = self.shape(node.input[0])
                known = shape is not None
                if shape is not None:  # its values do not matter
                    feeds = {node.input[0]: np.broadcast_to(np.float32(0), shape)}
            else:
                feeds = arrays
            if not known or node.op_type in kept or not allowed(node, feeds):
                remaining.append(node)
                continue
            for name, values in run_node(node, feeds, self.whole).items():
                arrays[name] = values
                self.set_constant(name, values)
        folded = len(remaining) < len(self.nodes)
        self.nodes = remaining
        return folded

    def shared_elements(self) -> int:
        """How many elements `separate_constants` will copy."""
        uses = Counter(name for node in self.nodes for name in node.input)
        return sum(
            (n - 1) * _elements(self.constants[k]) for k, n in uses.items() if k in self.constants
        )

    def separate_constants(self) -> None:
        """Gives every node constants of its own, so that changing one changes no other node."""
        seen: set[str] = set()
        annotated: dict[str, list[onnx.TensorAnnotation]] = {}
        for entry in self.whole.graph.quantization_annotation:
            annotated.setdefault(entry.tensor_name, []).append(entry)
        for node in self.nodes:
            for index, name in enumerate(node.input):
                if name in seen:
                    node.input[index] = copy = self.new_name()
                    self.set_constant(copy, self.array(name))
                    for entry in annotated.get(name, ()):
                        added = self.whole.graph.quantization_annotation.add()
                        added.CopyFrom(entry)
                        added.tensor_name = copy
                elif name in self.constants:
                    seen.add(name)

    def new_name(self) -> str:
        """A name that no tensor has."""
        self._count += 1
        while f"new_{self._count}" in self._taken:
            self._count += 1
        return f"new_{self._count}"

    def rename(self, names: Mapping[str, str]) -> None:
        """Renames inner tensors: old name → new name."""
        for node in self.nodes:
            for tensors in (node.input, node.output):
                for index, name in enumerate(tensors):
                    if name in names:
                        tensors[index] = names[name]
        for entry in self.whole.graph.quantization_annotation:
            entry.tensor_name = names.get(entry.tensor_name, entry.tensor_name)
        for table in (self.constants, self.types):
            entries = list(table.values())
            table.clear()
            for entry in entries:
                entry.name = names.get(entry.name, entry.name)
                table[entry.name] = entry  # pyright: ignore[reportArgumentType]

    def _sort(self) -> None:
        """Nodes behind those whose outputs they read, by the longest way from the inputs."""
        producers = {name: index for index, n in enumerate(self.nodes) for name in n.output if name}
        before = [
            {producers[name] for name in needed(node) if name in producers} for node in self.nodes
        ]
        levels: dict[int, int] = {}
        # Most graphs are in an order of execution already.
        in_order = all(max(own, default=-1) < index for index, own in enumerate(before))
        for index in (
            range(len(before))
            if in_order
            else TopologicalSorter(dict(enumerate(before))).static_order()
        ):
            levels[index] = 1 + max((levels[i] for i in before[index]), default=0)
        order = sorted(range(len(self.nodes)), key=levels.__getitem__)  # sorted keeps ties in order
        self.nodes = [self.nodes[index] for index in order]

    def _constants_last(self, node: onnx.NodeProto) -> None:
        """The order of inputs in which FINN expects a sum or a product with a constant."""
        if node.op_type in _COMMUTATIVE:
            node.input[:] = sorted(node.input, key=self.constants.__contains__)


def _stand_in(node: onnx.NodeProto, lookup: _Lookup) -> onnx.NodeProto:
    """A node that onnx knows, with an output of the same shape.

    Those that qonnx makes of quantizers and of channels-last operators hold random numbers of that
    shape, however large it is.
    """
    operator: Any = getCustomOp(node)
    given = [lookup.get_tensor_shape(name) for name in node.input if name]
    shapes = [tuple(shape) for shape in given if shape is not None]
    if len(shapes) < len(given) or not shapes:
        return operator.make_shape_compatible_op(lookup)
    if node.op_type in _BROADCAST:
        shape = np.broadcast_shapes(*shapes)
        if shape == shapes[0]:
            return helper.make_node("Identity", node.input[:1], node.output)
        return operator.make_const_shape_op(shape)
    if node.domain == CHANNELS_LAST and shapes[0]:
        image, channels = shapes[0][1:-1], shapes[0][-1]
        if node.op_type in ("Conv", "MaxPool"):
            image = _window_count(operator, image)
        if node.op_type == "Conv":
            channels = shapes[1][0]
        return operator.make_const_shape_op([shapes[0][0], *image, channels])
    return operator.make_shape_compatible_op(lookup)


def _window_count(operator: Any, image: Sequence[int]) -> Sequence[int]:
    """Size of what a convolution or a pooling without ceil_mode gives, without channels."""
    sizes = []
    for axis, size in enumerate(image):
        names = ("kernel_shape", "strides", "pads", "dilations")
        known = operator.get_nodeattr_types()
        values = [operator.get_nodeattr(name) if name in known else [] for name in names]
        kernel, stride, pads, dilation = (list(v) if v else [] for v in values)
        padded = size + sum(pads[axis :: len(image)])
        window = (dilation[axis] if dilation else 1) * (kernel[axis] - 1) + 1
        sizes.append(max((padded - window) // (stride[axis] if stride else 1) + 1, 0))
    return sizes


class _Lookup(ModelWrapper):
    """Answers from the index what QONNX's operators ask a ModelWrapper about shapes."""

    def __init__(self, graph: IndexedGraph) -> None:
        self._indexed = graph

    def get_tensor_valueinfo(self, tensor_name: str) -> onnx.ValueInfoProto | None:
        return self._indexed.types.get(tensor_name)

    def get_tensor_shape(
        self, tensor_name: str, fix_missing_init_shape: bool = False
    ) -> list[int] | None:
        if tensor_name in self._indexed.types:
            dims = self._indexed.types[tensor_name].type.tensor_type.shape.dim
            return [d.dim_value for d in dims]
        known = tensor_name in self._indexed.constants
        return list(self._indexed.constants[tensor_name].dims) if known else None

    def get_initializer(self, tensor_name: str, return_dtype: bool = False) -> Any:
        known = tensor_name in self._indexed.constants
        values = self._indexed.array(tensor_name) if known else None
        if return_dtype:
            return values, self._indexed.constants[tensor_name].data_type if known else None
        return values


def _elements(tensor: onnx.TensorProto) -> int:
    return math.prod(tensor.dims)


def _replace(field: Any, entries: list) -> None:
    """Gives a repeated field of a message other entries, which may be its own."""
    del field[:]
    field.extend(entries)
