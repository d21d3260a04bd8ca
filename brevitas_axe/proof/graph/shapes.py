"""The length of a product of two activations, inferred and not believed."""

from __future__ import annotations

from functools import cached_property

import onnx

from brevitas_axe.proof.graph.modelfile import ModelFile

_ELEMENTWISE = ("Quant", "IntQuant", "BipolarQuant", "FloatQuant", "Trunc", "MultiThreshold")


class Shapes:
    """Shapes that follow from the graph inputs and initializers alone.

    The file's own value_info is dropped first: a wrong length there would fake a proof.
    """

    def __init__(self, file: ModelFile) -> None:
        self._file = file

    def dimension(self, tensor: str, axis: int) -> int | None:
        """Length of one axis, None where it is not fixed."""
        dims = self._shapes.get(tensor, ())
        if not -len(dims) <= axis < len(dims):
            return None
        return dims[axis].dim_value if dims[axis].HasField("dim_value") else None

    @cached_property
    def _shapes(self) -> dict[str, tuple[onnx.TensorShapeProto.Dimension, ...]]:
        model = onnx.ModelProto()
        model.CopyFrom(self._file.model)
        graph = model.graph
        del graph.value_info[:]
        for value in graph.output:
            value.type.tensor_type.ClearField("shape")
        ordered = [node.proto for node in self._file.nodes]
        del graph.node[:]
        for proto in ordered:
            if proto.domain and proto.op_type in _ELEMENTWISE:
                proto = onnx.helper.make_node("Identity", proto.input[:1], proto.output[:1])
            graph.node.append(proto)
        try:
            inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
        except Exception:  # no shape, no proof; the dot product says so by name
            return {}
        values = (*inferred.input, *inferred.value_info, *inferred.output)
        return {v.name: tuple(v.type.tensor_type.shape.dim) for v in values}
