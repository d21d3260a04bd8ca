"""Reads an ONNX file of unknown origin: from bytes to a checked graph.

Whatever is unusable raises InvalidModelFile in one sentence. External data is read from inside
the file's own folder only.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError, Message
from onnx import numpy_helper

from brevitas_axe.errors import AxeError, InvalidModelFile
from brevitas_axe.proof.graph.budget import WorkBudget
from brevitas_axe.proof.graph.doubts import refuse_doubtful, refuse_doubts

_MAX_ELEMENTS = 2**31
# Types whose values are stored in fields of int32, and the values that they have.
_INT32_RANGES: dict[int, tuple[int, int]] = {
    onnx.TensorProto.BOOL: (0, 1),
    onnx.TensorProto.INT8: (-(2**7), 2**7 - 1),
    onnx.TensorProto.UINT8: (0, 2**8 - 1),
    onnx.TensorProto.INT16: (-(2**15), 2**15 - 1),
    onnx.TensorProto.UINT16: (0, 2**16 - 1),
    onnx.TensorProto.FLOAT16: (0, 2**16 - 1),
    onnx.TensorProto.BFLOAT16: (0, 2**16 - 1),
}


@dataclass(frozen=True)
class Node:
    """A node, a unique name for it, and its place in the file."""

    proto: onnx.NodeProto
    name: str

    @property
    def op(self) -> str:
        return self.proto.op_type

    @property
    def domain(self) -> str:
        return plain_domain(self.proto.domain)

    @property
    def inputs(self) -> list[str]:
        return list(self.proto.input)

    @property
    def outputs(self) -> list[str]:
        return list(self.proto.output)

    def attribute(self, name: str, default: Any, kind: str | None = None) -> Any:
        """The attribute's value, or default; raises InvalidModelFile for a wrong type.

        Args:
            name: of the attribute.
            default: when it is absent; its Python type decides which kind is expected.
            kind: AttributeProto type name where the default does not tell, such as "INTS".
        """
        for attribute in self.proto.attribute:
            if attribute.name != name:
                continue
            expected = kind or {int: "INT", float: "FLOAT", str: "STRING"}[type(default)]
            if onnx.AttributeProto.AttributeType.Name(attribute.type) != expected:
                raise InvalidModelFile(
                    f"node '{self.name}': attribute '{shown(name)}' must be {expected}; "
                    "export the model again."
                )
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        return default


@dataclass(frozen=True)
class ModelFile:
    """A parsed model whose graph is acyclic, complete and in static single assignment.

    Attributes:
        model: the protobuf, external data not loaded.
        nodes: in execution order.
        subject: what to call it in messages.
        sha256: of the bytes.
        folder: of external data; None for a model in memory.
        external: (location, sha256) of each external file.
        types: datatype annotations by tensor.
        budget: of its analysis.
    """

    model: onnx.ModelProto
    nodes: tuple[Node, ...]
    subject: str
    sha256: str
    folder: Path | None
    external: tuple[tuple[str, str], ...] = ()
    types: dict[str, str] = field(default_factory=dict)
    budget: WorkBudget = field(default_factory=WorkBudget)

    @property
    def graph(self) -> onnx.GraphProto:
        return self.model.graph

    def opset(self, domain: str = "") -> int:
        """Version of an operator set, 1 if the file does not import it."""
        imports = self.model.opset_import
        versions = [o.version for o in imports if plain_domain(o.domain) == domain]
        return max(versions, default=1)

    def array(self, tensor: onnx.TensorProto) -> np.ndarray:
        """The tensor's values; sub-byte and 16-bit floating types widened to numpy's own."""
        name = shown(tensor.name)
        count = int(np.prod([int(d) for d in tensor.dims], dtype=object))
        if any(d < 0 for d in tensor.dims) or count > _MAX_ELEMENTS:
            raise InvalidModelFile(
                f"{self.subject}: tensor '{name}' has the impossible shape "
                f"{list(tensor.dims)}; export the model again."
            )
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            loaded = onnx.TensorProto()
            loaded.CopyFrom(tensor)
            loaded.ClearField("external_data")
            loaded.data_location = onnx.TensorProto.DEFAULT
            loaded.raw_data = self._external_bytes(tensor)
            tensor = loaded
        try:
            _check_stored(tensor)
            array = numpy_helper.to_array(tensor)
        except Exception as error:  # libraries raise many types for corrupted data
            raise InvalidModelFile(
                f"{self.subject}: tensor '{name}' does not hold what its type and shape say "
                f"({type(error).__name__}); export the model again."
            ) from None
        if array.dtype.kind in "fiubcOSU":
            return array
        integer = np.issubdtype(array.dtype, np.integer) or "int" in array.dtype.name
        return array.astype(np.int8 if integer else np.float32)

    def _external_bytes(self, tensor: onnx.TensorProto) -> bytes:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        path = external_path(tensor, self.folder, self.subject)
        try:
            offset, size = int(entries.get("offset", 0)), path.stat().st_size
            length = int(entries.get("length", size - offset))
        except (ValueError, OSError):
            offset, length, size = -1, -1, 0
        if offset < 0 or length < 0 or offset + length > size:
            raise InvalidModelFile(
                f"{self.subject}: tensor '{shown(tensor.name)}' points outside its external data "
                f"file '{path.name}'; export the model again."
            )
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)


def _check_stored(tensor: onnx.TensorProto) -> None:
    """Raises ValueError for values that their type does not have, which readers wrap or keep."""
    if tensor.data_type == onnx.TensorProto.BOOL and max(tensor.raw_data, default=0) > 1:
        raise ValueError
    ends = _INT32_RANGES.get(tensor.data_type)
    if ends and tensor.int32_data:
        stored = tensor.int32_data
        if min(stored) < ends[0] or max(stored) > ends[1]:
            raise ValueError


@contextmanager
def analysing(file: ModelFile) -> Iterator[None]:
    """Whatever a hostile file still provokes in a library becomes InvalidModelFile."""
    try:
        yield
    except AxeError:
        raise
    except Exception as error:
        raise InvalidModelFile(
            f"{file.subject} cannot be analysed ({type(error).__name__}); export the model again."
        ) from error


def plain_domain(domain: str) -> str:
    """An operator set's domain, "" for the standard one under either of its names."""
    return "" if domain == "ai.onnx" else domain


def shown(name: str) -> str:
    """A name from a file, escaped and shortened for one line of a message."""
    text = "".join(c if c.isprintable() else "?" for c in str(name))
    return text if len(text) <= 120 else text[:117] + "..."


def read(path_or_model: str | os.PathLike | onnx.ModelProto | object) -> ModelFile:
    """Parses and checks a model.

    Args:
        path_or_model: path of an ONNX file, a ModelProto, or a qonnx ModelWrapper.

    Raises:
        InvalidModelFile: no such file, not ONNX, unsafe external data, or a broken graph.
    """
    model, folder = getattr(path_or_model, "model", path_or_model), None
    if isinstance(model, onnx.ModelProto):
        subject, data = "the ONNX model", model.SerializeToString(deterministic=True)
    elif isinstance(path_or_model, (str, os.PathLike)):
        path = Path(path_or_model)
        subject = shown(path.name)
        try:
            data = path.read_bytes()
        except (OSError, ValueError) as error:
            raise InvalidModelFile(
                f"{shown(str(path))} cannot be read ({type(error).__name__}); give the path of an "
                "ONNX file."
            ) from None
        folder = path.resolve().parent
        model = _parse(data, subject)
    else:
        raise InvalidModelFile(
            f"a model file is a path or an ONNX model, not {type(path_or_model).__name__}."
        )
    external = []
    refuse_doubts(model, subject)
    for tensor in _tensors(model, subject):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            external.append(external_path(tensor, folder, subject))
    return ModelFile(
        model=model,
        nodes=_ordered(model.graph, subject),
        subject=subject,
        sha256=hashlib.sha256(data).hexdigest(),
        folder=folder,
        external=tuple(
            (p.relative_to(folder).as_posix(), hashlib.sha256(p.read_bytes()).hexdigest())
            for p in dict.fromkeys(external)
        ),
        budget=WorkBudget(len(data) + sum(p.stat().st_size for p in dict.fromkeys(external))),
        types={
            annotation.tensor_name: pair.value
            for annotation in model.graph.quantization_annotation
            for pair in annotation.quant_parameter_tensor_names
            if pair.key == "finn_datatype"
        },
    )


def external_path(tensor: onnx.TensorProto, folder: Path | None, subject: str) -> Path:
    """Path of a tensor's external data; raises InvalidModelFile outside the file's folder."""
    location = {entry.key: entry.value for entry in tensor.external_data}.get("location", "")
    name, place = shown(tensor.name), shown(location)
    if folder is None:
        raise InvalidModelFile(
            f"{subject}: tensor '{name}' is external data of a model in memory; load it first, or "
            "pass the path."
        )
    unsafe = InvalidModelFile(
        f"{subject}: tensor '{name}' refers to '{place}', outside the model's folder; put the "
        "data beside the model and refer to it by a relative path."
    )
    if not location or "\0" in location or Path(location).is_absolute() or "\\" in location:
        raise unsafe
    path = (folder / location).resolve()
    if not path.is_relative_to(folder):
        raise unsafe
    if not path.is_file():
        raise InvalidModelFile(
            f"{subject}: the external data '{place}' of tensor '{name}' is missing; put it beside "
            "the model."
        )
    return path


def _parse(data: bytes, subject: str) -> onnx.ModelProto:
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, ValueError, RecursionError):
        raise InvalidModelFile(
            f"{subject} is truncated or no ONNX file; export the model again."
        ) from None
    if not model.HasField("graph") or not (model.graph.node or model.graph.initializer):
        raise InvalidModelFile(f"{subject} has no graph; export the model again.")
    return model


def _tensors(model: onnx.ModelProto, subject: str) -> Iterator[onnx.TensorProto]:
    """Every tensor anywhere in a model: initializers, attributes, subgraphs, functions.

    Raises InvalidModelFile for a name that is no text (protobuf returns those as bytes), and for
    anything that is defined twice.
    """
    stack: list[Message] = [model]
    while stack:
        message = stack.pop()
        refuse_doubtful(message, subject)
        if isinstance(message, onnx.TensorProto):
            yield message
        for description, value in message.ListFields():
            single = isinstance(value, Message | str | bytes | int | float)
            values: Any = (value,) if single else value
            if description.message_type is not None:
                stack.extend(values)
            elif description.type == description.TYPE_STRING and any(
                isinstance(text, bytes) for text in values
            ):
                raise InvalidModelFile(
                    f"{subject} has a {description.name} that is no UTF-8 text; export the model "
                    "again."
                )


def _ordered(graph: onnx.GraphProto, subject: str) -> tuple[Node, ...]:
    """Nodes in execution order (Kahn), each under a unique name."""
    nodes, producer, names = [], {}, set()
    given = {i.name for i in graph.initializer} | {i.name for i in graph.input}
    given |= {s.values.name for s in graph.sparse_initializer} | {""}
    for index, proto in enumerate(graph.node):
        outputs = [o for o in proto.output if o]
        name = shown(proto.name or (outputs[0] if outputs else f"{proto.op_type}_{index}"))
        while name in names:
            name += f"#{index}"
        names.add(name)
        nodes.append(Node(proto, name))
        for output in outputs:
            if output in producer or output in given:
                raise InvalidModelFile(
                    f"{subject}: tensor '{shown(output)}' is defined twice, again by node "
                    f"'{name}'; export the model again."
                )
            producer[output] = index
    for value in graph.output:
        if value.name not in producer and value.name not in given:
            raise InvalidModelFile(
                f"{subject}: nothing defines the output '{shown(value.name)}'; export the model "
                "again."
            )
    waiting, consumers = [], [[] for _ in nodes]
    for index, node in enumerate(nodes):
        own = node.inputs
        missing = next((t for t in own if t not in producer and t not in given), None)
        if missing is not None:
            raise InvalidModelFile(
                f"{subject}: node '{node.name}' needs tensor '{shown(missing)}', which nothing "
                "defines; export the model again."
            )
        sources = {producer[t] for t in (*own, *captured(node.proto)) if t in producer}
        waiting.append(len(sources))
        for source in sources:
            consumers[source].append(index)
    ready = [i for i, count in enumerate(waiting) if count == 0]
    order = []
    for index in ready:
        order.append(nodes[index])
        for consumer in consumers[index]:
            waiting[consumer] -= 1
            if waiting[consumer] == 0:
                ready.append(consumer)
    if len(order) < len(nodes):
        stuck = next(n.name for n, count in zip(nodes, waiting, strict=True) if count)
        raise InvalidModelFile(
            f"{subject}: node '{stuck}' is part of a cycle; export the model again."
        )
    return tuple(order)


def subgraphs(proto: onnx.NodeProto) -> list[onnx.GraphProto]:
    """Graphs in a node's attributes, such as the branches of an If."""
    graphs = [a.g for a in proto.attribute if a.HasField("g")]
    return graphs + [g for a in proto.attribute for g in a.graphs]


def captured(proto: onnx.NodeProto) -> list[str]:
    """Tensors that a node's subgraphs may take from outside (own names included)."""
    names, stack = [], subgraphs(proto)
    while stack:
        graph = stack.pop()
        for node in graph.node:
            names.extend(node.input)
            stack.extend(subgraphs(node))
        names.extend(output.name for output in graph.output)
    return names
