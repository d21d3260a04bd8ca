"""Refuses files that two readers may understand differently.

ONNX Runtime and qonnx agree on a file only if it defines everything once: of two initializers with
one name, the former takes the first and the latter the last.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx
from google.protobuf.message import Message

from brevitas_axe.errors import InvalidModelFile

_DATA_FIELDS = (
    *("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"),
    "string_data",
)


def refuse_doubts(model: onnx.ModelProto, subject: str) -> None:
    """Raises InvalidModelFile for a model that defines something twice."""
    versions: dict[str, int] = {}
    for imported in model.opset_import:
        domain = "" if imported.domain == "ai.onnx" else imported.domain
        if versions.setdefault(domain, imported.version) != imported.version:
            raise _twice(subject, "operator set", domain or "ai.onnx")
    names = [(f.domain, f.name) for f in model.functions]
    _unique(names, subject, "local function")
    types: dict[str, set[str]] = {}
    for annotation in model.graph.quantization_annotation:
        for pair in annotation.quant_parameter_tensor_names:
            if pair.key == "finn_datatype":
                known = types.setdefault(annotation.tensor_name, set())
                known.add(pair.value)
                if len(known) > 1:
                    raise _twice(subject, "datatype of tensor", annotation.tensor_name)
    for value in model.graph.input:
        dims = value.type.tensor_type.shape.dim
        if any(d.HasField("dim_value") and d.dim_value < 0 for d in dims):
            raise InvalidModelFile(
                f"{subject}: graph input '{_shown(value.name)}' has a negative length; export the "
                "model again."
            )


def refuse_doubtful(message: Message, subject: str) -> None:
    """Raises InvalidModelFile for what a graph, node or tensor defines twice or without a name."""
    if isinstance(message, onnx.GraphProto):
        _unique([i.name for i in message.input], subject, "graph input")
        _unique([o.name for o in message.output], subject, "graph output")
        constants = [i.name for i in message.initializer]
        constants += [s.values.name for s in message.sparse_initializer]
        _unique(constants, subject, "initializer")
    elif isinstance(message, onnx.NodeProto):
        _unique([a.name for a in message.attribute], subject, "attribute of a node,")
    elif isinstance(message, onnx.TensorProto):
        fields = [name for name in _DATA_FIELDS if len(getattr(message, name))]
        if message.external_data:
            _unique([entry.key for entry in message.external_data], subject, "external data entry")
        external = message.data_location == onnx.TensorProto.EXTERNAL
        if len(fields) + external > 1 or message.HasField("segment"):
            raise _twice(subject, "data of tensor", message.name)


def _unique(names: Iterable, subject: str, what: str) -> None:
    seen = set()
    for name in names:
        if not name:  # for ONNX Runtime an input without a name is left out
            raise InvalidModelFile(
                f"{subject}: one {what} has no name, so that readers of the file may take it "
                "differently; export the model again."
            )
        if name in seen:
            raise _twice(subject, what, name)
        seen.add(name)


def _twice(subject: str, what: str, name: object) -> InvalidModelFile:
    return InvalidModelFile(
        f"{subject}: the {what} '{_shown(name)}' is given twice, so that readers of the file may "
        "take it differently; export the model again."
    )


def _shown(name: object) -> str:
    text = ".".join(map(str, name)) if isinstance(name, tuple) else str(name)
    return "".join(c if c.isprintable() else "?" for c in text)[:120]
