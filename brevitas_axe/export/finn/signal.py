"""Values of tensors as FINN sees them, and the graph with what the rules look up.

FINN moves every scale and offset towards the next quantizer and folds it into its thresholds. So a
tensor is one of: `Host` (float values before FINN's first layer), `Signal` (integers with a scale
and an offset that are still to be folded) or `Lost` (FINN cannot follow it; the reason is reported
only if something that FINN must build depends on it).
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from math import prod

import numpy as np
import onnx

from brevitas_axe.export.finn.finding import Finding, Severity
from brevitas_axe.export.finn.tokens import is_transformer
from brevitas_axe.proof.graph.grid import Fact, Grid, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node
from brevitas_axe.proof.graph.names import Names
from brevitas_axe.proof.graph.quantizers import constant_values

# Parts of a module's path that belong to Brevitas, not to the user.
_INNER = re.compile(r"(act|input|output|weight|bias|trunc)_quant|export_handler")


@dataclass(frozen=True)
class Host:
    """Float values that are not quantized yet.

    Attributes:
        scale: product of the constants by which they were multiplied, broadcastable to the tensor.
    """

    scale: np.ndarray = field(default_factory=lambda: np.ones(()), compare=False)


@dataclass(frozen=True)
class Lost:
    """Values of an operator that FINN does not build."""

    finding: Finding


@dataclass(frozen=True)
class Accumulation:
    """The dot product that accumulated a signal.

    Attributes:
        layer: name of the layer.
        scale: of its accumulator, broadcastable to its output.
        lowest: channels that use the most negative integer of their weight type, which FINN
            cannot negate; broadcastable like scale.
    """

    layer: str
    scale: np.ndarray
    lowest: np.ndarray


@dataclass(frozen=True)
class Signal:
    """value = scale × integer + offset.

    Attributes:
        scale: float64, broadcastable to the tensor.
        offset: float64, likewise.
        low, high: int64, smallest and largest integer, likewise.
        step: int64, distance of neighbouring integers, which are `low` plus multiples of it.
        size: float64, likewise: magnitude of the values that were added up, to which the rounding
            errors of float32 are relative.
        quantizer: layer whose quantizer gave these integers, "" for sums of products.
        dot: the dot product that gave it, as long as FINN can still flip the sign of its weights.
        rectified: a ReLU that a quantizer must follow.
        pooled: averaged over the whole image, so that only thresholds may follow.
        flattened: without image axes, so that only a dot product may follow.
        needs_copies: several consumers, and a bias or per-channel scales that FINN cannot
            duplicate to all of them.
        bipolar: integers -1 and 1, to which no zero can be padded.
    """

    scale: np.ndarray
    offset: np.ndarray
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    size: np.ndarray
    quantizer: str = ""
    dot: Accumulation | None = None
    rectified: bool = False
    pooled: bool = False
    flattened: bool = False
    needs_copies: bool = False
    bipolar: bool = False

    @property
    def elements(self) -> int:
        """How many channels differ in anything."""
        shapes = (part.shape for part in (self.scale, self.offset, self.low, self.step, self.size))
        return prod(np.broadcast_shapes(*shapes))

    @cached_property
    def one_scale(self) -> bool:
        return self.scale.size == 1 or bool(np.ptp(self.scale) == 0)

    @cached_property
    def shifted(self) -> bool:
        return bool(np.any(self.offset != 0))

    @cached_property
    def integral(self) -> bool:
        """One positive scale, no offset: its integers can be multiplied and compared."""
        return self.joinable and not self.shifted

    @cached_property
    def joinable(self) -> bool:
        """One positive scale: it can be added to another of the same scale, offsets included."""
        plain = self.one_scale and bool(np.all(self.scale > 0))
        return plain and not self.rectified and not self.pooled


Value = Host | Lost | Signal


@dataclass(frozen=True)
class Ties:
    """Sums that can lie halfway between a quantizer's levels, as ties.py finds them.

    Attributes:
        count: number of ties, over all channels.
        systematic: number of those that are no coincidence of scales and offsets.
        shift: float64, to be added to the integers so that FINN and torch round the ties alike and
            nothing else changes; broadcastable to the tensor, NaN where no such shift exists.
    """

    count: int
    systematic: int
    shift: np.ndarray


class Graph:
    """A model, the facts of its constants, and the findings so far.

    `written` has the names of the file before its constants were folded. Where it is a
    transformer's, `tokens` is True: FINN streamlines it by other steps, which leave float units
    between layers.
    """

    def __init__(
        self, model: onnx.ModelProto, file: ModelFile, facts: dict[str, Fact], written: Names
    ) -> None:
        self.file = file
        self.facts = facts
        self.names = Names(file)
        self.written = written
        self.tokens = is_transformer(model)
        self.values: dict[str, Value] = {}
        self.findings: dict[Finding, None] = {}
        self.ties: dict[str, tuple[Signal, Ties]] = {}
        self.unequal: list[tuple[str, str]] = []  # quantizers of branches with unequal scales
        self._uses = Counter(tensor for node in file.nodes for tensor in node.inputs if tensor)
        self._uses.update(output.name for output in model.graph.output)
        values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
        self._shapes = {t.name: tuple(t.dims) for t in model.graph.initializer}
        self._shapes |= {
            v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values
        }
        self._consumers: dict[str, list[Node]] = {}
        for node in file.nodes:
            for tensor in node.inputs:
                self._consumers.setdefault(tensor, []).append(node)

    def constant(self, tensor: str) -> np.ndarray | None:
        """Values of a constant of the file; None for a computed tensor."""
        fact = self.facts.get(tensor)
        return constant_values(fact, tensor) if fact is not None and is_constant(fact) else None

    def grid(self, tensor: str) -> Grid | None:
        """The grid of a quantized constant."""
        fact = self.facts.get(tensor)
        return fact if isinstance(fact, Grid) and fact.integers is not None else None

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Inferred shape, empty where it is unknown."""
        return self._shapes.get(tensor, ())

    def uses(self, tensor: str) -> int:
        """Number of nodes and graph outputs that read a tensor."""
        return self._uses[tensor]

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read a tensor."""
        return self._consumers.get(tensor, [])

    def name(self, node: Node) -> str:
        """The module that a node belongs to; the node's own name where the file has no module."""
        scopes = [
            p.strip("/").split("/")[:-1] for p in (node.proto.name, *node.outputs) if p[:1] == "/"
        ]
        for prop in node.proto.metadata_props:
            if prop.key == "pkg.torch.onnx.name_scopes":  # of torch's newer exporter
                scopes.append(ast.literal_eval(prop.value)[-2:-1][0].split("."))
        for path in scopes:
            kept = list(takewhile(lambda scope: not _INNER.fullmatch(scope), path))
            if any(kept):
                inner = zip(kept, [*kept[1:], ""], strict=True)
                return ".".join(s for s, after in inner if not after.startswith(s + "."))
        return node.name

    def feeds_bipolar(self, node: Node) -> bool:
        """Whether an output goes to dot products with weights of -1 and 1 alone."""
        tensors, found, seen = list(node.outputs), False, set[str]()
        while tensors:
            tensor = tensors.pop()
            if tensor in seen:
                continue
            seen.add(tensor)
            consumers = self.consumers(tensor)
            if self.uses(tensor) > len(consumers):  # an output of the model
                return False
            for after in consumers:
                if after.op in ("Transpose", "Flatten", "Reshape", "Identity", "Dropout"):
                    tensors.extend(after.outputs)
                    continue
                weights = self.grid(after.inputs[1]) if len(after.inputs) > 1 else None
                if after.op not in ("MatMul", "Gemm", "Conv") or weights is None:
                    return False
                if weights.type != "BIPOLAR":
                    return False
                found = True
        return found

    def layer(self, node: Node) -> str:
        """The module that a dot product belongs to, as certificates name it."""
        return self.written.layer(node, node.inputs[1]) or self.name(node)

    def quantizations(self, name: str) -> int:
        """Number of quantizers of computed values that belong to a module."""
        return sum(
            node.op in ("Quant", "IntQuant")
            and self.constant(node.inputs[0]) is None
            and self.name(node) == name
            for node in self.file.nodes
        )

    def producer(self, tensor: str) -> Node | None:
        """The node that computes a tensor."""
        return self.names.producer(tensor)

    def report(
        self, layer: str, rule: str, problem: str, way_out: str, severity: Severity = "refused"
    ) -> Finding:
        """Reports a finding, once."""
        finding = Finding(layer, rule, severity, problem, way_out)
        self.findings[finding] = None
        return finding

    def report_ties(self, name: str, signal: Signal, ties: Ties) -> None:
        """Reports sums halfway between the levels of a quantizer."""
        layer = signal.dot.layer if signal.dot else name
        self.ties[layer] = (signal, ties)
        problem = f"sums of '{layer}' can lie halfway between two levels of '{name}', exactly or up"
        problem += " to float rounding, and FINN and torch may then round them differently"
        if not ties.systematic:
            problem = f"{ties.count} of the sums of '{layer}' happen to lie next to a level of"
            problem += f" '{name}', and FINN and torch may round these differently"
        way_out = "mend_for_finn moves these sums a little, by which both agree"
        if np.isnan(ties.shift).any():
            way_out = (
                "some lie too close together to be moved apart, so expect a level more or less"
            )
        self.report(layer, "tie", problem, way_out, "tie" if ties.systematic else "note")

    def demand(self, value: Value) -> Value:
        """The value of something that FINN must build; reports why it cannot be followed."""
        if isinstance(value, Lost):
            self.findings[value.finding] = None
        return value


def forked(value: Value) -> Value:
    """Value of a tensor with several consumers.

    FINN can move a single scale past the fork, but no bias and no sign flip.
    """
    if not isinstance(value, Signal):
        return value
    return replace(value, dot=None, needs_copies=not value.integral and not value.rectified)
