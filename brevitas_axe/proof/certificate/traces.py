"""How the elements of a tensor were computed: moved, multiplied, and along which axes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from brevitas_axe.proof.graph.grid import Constant, Fact, Grid, Unprovable, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node
from brevitas_axe.proof.graph.operators import Kind, kind_of
from brevitas_axe.proof.graph.quantizers import constant_values
from brevitas_axe.proof.graph.shapes import Shapes

Axes = frozenset[int]
# With more roots than this, any tensor counts as a root.
_MAX_ROOTS = 32
_ONE_FACTOR: Axes = frozenset()
# Functions that turn a sum into a product: e^(x + b) = e^x · e^b.
_EXPONENTIAL = ("Exp", "Sinh", "Cosh")
_CHOICES = ("Where", "Max", "Min")
_COMPARISONS = ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")
# Functions of one element that end in a gate, as SiLU, GELU and Mish do: x·gate(x) is no square.
_GATES = ("Sigmoid", "Tanh", "Erf", "HardSigmoid", "Clip", "Softplus")


@dataclass(frozen=True)
class Trace:
    """How the elements of a computed tensor were computed.

    Attributes:
        roots: tensors of whose elements these are copies, functions or sums; None for any.
        moved: elements may have changed places since.
        scaled: they were multiplied since.
        varying: negative axes along which their factors vary; None for any.
        source: tensor of which each element is a function by itself; "" for none.
        gated: that function contains a gate.
        shifted: negative axes along which constants that were added to them, or chosen beside
            them, vary; None for any.
        exponential: that function contains an exponential.
        gain: product of the single numbers that they were multiplied by.
        rounded: a quantizer rounded products of them, or some were taken more often than others:
            whole steps of one size do not mean one factor.
    """

    roots: frozenset[str] | None
    moved: bool = False
    scaled: bool = False
    varying: Axes | None = _ONE_FACTOR
    source: str = ""
    gated: bool = False
    shifted: Axes | None = _ONE_FACTOR
    exponential: bool = False
    gain: float = 1.0
    rounded: bool = False

    def weighted_along(self, axes: Axes | None) -> bool:
        """Whether factors differ between elements along these axes (None: any)."""
        if self.varying is None:
            return axes is None or bool(axes)
        return bool(self.varying if axes is None else self.varying & axes)

    def shares(self, other: Trace) -> bool:
        """Whether both may have elements of the same tensor."""
        if self.roots is None or other.roots is None:
            return True
        return bool(self.roots & other.roots)


class Traces:
    """Traces of the computed tensors of a graph, filled in execution order."""

    def __init__(self, file: ModelFile, facts: dict[str, Fact], shapes: Shapes) -> None:
        self._facts, self._shapes, self._budget = facts, shapes, file.budget
        self._traces: dict[str, Trace] = {}
        self._even: dict[str, bool] = {}  # indices → whether each occurs equally often
        self._consumers: dict[str, list[Node]] = {}
        for node in file.nodes:
            for tensor in dict.fromkeys(node.inputs):
                self._consumers.setdefault(tensor, []).append(node)

    def of(self, tensor: str) -> Trace | None:
        """The trace of a computed tensor; None for a constant."""
        if not tensor or is_constant(self._facts[tensor]):
            return None
        return self._traces.get(tensor) or Trace(frozenset({tensor}), source=tensor)

    def follow(self, node: Node) -> None:
        """Gives a node's outputs their traces."""
        kind, given = kind_of(node), [self.of(t) for t in node.inputs]
        traced = [trace for trace in given if trace is not None]
        if kind is Kind.FRESH and node.op in _COMPARISONS and len(traced) == 1:
            self._compare(node, given, traced[0])
        if not traced or kind in (None, Kind.FRESH, Kind.SUM, Kind.SQUARES):
            return  # new numbers: the tensor is its own root
        if kind is Kind.NORM:
            result = replace(self._joined(traced[:1]), scaled=True, varying=self._affine(node))
        elif kind is Kind.STAY and given[0] is not None:
            result = given[0]
        elif kind is Kind.UNARY:
            result = replace(traced[0], gated=traced[0].gated or node.op in _GATES)
            if node.op in _EXPONENTIAL:
                varying = _union(result.varying, result.shifted)
                result = replace(result, varying=varying, exponential=True)
        elif kind is Kind.QUANTIZER:
            result = self._quantized(node, given, traced)
        elif kind is Kind.MOVE:
            result = self._moved(node, traced)
        elif kind is Kind.PRODUCT:
            result = self._product(node, given, traced)
        else:
            result = self._combined(node, given, traced)
        for output in node.outputs:
            fact = self._facts.get(output)
            whole = isinstance(fact, Grid) and fact.scalar
            reset = whole and not result.rounded
            self._traces[output] = replace(result, varying=_ONE_FACTOR) if reset else result

    def call(self, node: Node, multiplies: bool) -> None:
        """Traces the outputs of a local function or control flow, whose inside is not followed."""
        inputs = [t for t in (self.of(t) for t in node.inputs) if t is not None]
        joined = self._joined(inputs) if inputs else Trace(None)
        roots = joined.roots if node.domain else None  # a subgraph may use any tensor
        varying = None if multiplies or joined.varying != _ONE_FACTOR else _ONE_FACTOR
        scaled = multiplies or joined.scaled
        for output in node.outputs:
            self._traces[output] = Trace(roots, True, scaled, varying)

    def axes(self, node: Node) -> Axes | None:
        """Axes that a node sums over, negative; None where they are not known."""
        rank = self._shapes.rank(node.inputs[0])
        if node.op == "LayerNormalization":
            return self._affine(node)
        if node.op == "QuantAvgPool2d":
            last = node.attribute("data_layout", "NCHW") == "NHWC"
            return frozenset({-3, -2} if last else {-2, -1})
        if node.op in ("AveragePool", "GlobalAveragePool", "LpPool", "GlobalLpPool"):
            return None if rank is None else frozenset(range(2 - rank, 0))
        axes = node.attribute("axes", [], "INTS")
        if not axes and len(node.inputs) > 1 and node.inputs[1]:
            try:
                axes = constant_values(self._facts[node.inputs[1]], "").reshape(-1).tolist()
            except Unprovable:
                return None
        if not axes or (rank is None and min(axes) >= 0):
            return None
        return frozenset(int(a) if a < 0 else int(a) - (rank or 0) for a in axes)

    def is_variance(self, node: Node) -> bool:
        """Whether a sum of squares is only used in a root or a divisor, as in normalizations.

        A sum of exponentials is one if it is a divisor, as in softmax.
        """
        trace = self.of(node.inputs[0])
        divisor = node.op in ("ReduceL2", "LpPool") or (trace is not None and trace.exponential)
        tensor = node.outputs[0]
        for _ in range(4):
            readers = self._consumers.get(tensor, [])
            if len(readers) != 1:
                return False
            reader = readers[0]
            if reader.domain or reader.op not in ("Add", "Clip", "Max", "Sqrt", "Div", "Expand"):
                return False
            if reader.op == "Sqrt":
                return True
            if reader.op == "Div":
                return divisor and reader.inputs[1] == tensor
            others = [t for t in reader.inputs if t and t != tensor]
            if reader.op != "Expand" and not all(is_constant(self._facts[t]) for t in others):
                return False
            tensor = reader.outputs[0]
        return False

    def _joined(self, traces: list[Trace]) -> Trace:
        roots: set[str] | None = set()
        for trace in traces:
            roots = None if roots is None or trace.roots is None else roots | trace.roots
        if roots is not None and len(roots) > _MAX_ROOTS:
            roots = None
        return Trace(
            None if roots is None else frozenset(roots),
            any(t.moved for t in traces),
            any(t.scaled for t in traces),
            _union(*(t.varying for t in traces)),
            shifted=_union(*(t.shifted for t in traces)),
            exponential=any(t.exponential for t in traces),
            gain=traces[0].gain if len({t.gain for t in traces}) == 1 else 1.0,
            rounded=any(t.rounded for t in traces),
        )

    def _compare(self, node: Node, given: list[Trace | None], trace: Trace) -> None:
        """A comparison with one number is a function of each element by itself."""
        if trace.source and not self._constants_vary(node, given):
            self._traces[node.outputs[0]] = Trace(trace.roots, trace.moved, source=trace.source)

    def _constants_vary(self, node: Node, given: list[Trace | None]) -> Axes | None:
        """Axes along which the constants among a node's inputs vary; None for any."""
        constants = [t for t, trace in zip(node.inputs, given, strict=True) if trace is None and t]
        return _union(*(self._varying_axes(self._facts[t]) for t in constants))

    def _combined(self, node: Node, given: list[Trace | None], traced: list[Trace]) -> Trace:
        """Sums, and choices, of tensors and constants."""
        result = self._joined(traced)
        if len(traced) == 1:
            result = replace(result, source=traced[0].source, gated=traced[0].gated)
        if node.op in ("Add", "Sum") and len(traced) > 1 and len(set(node.inputs)) == 1:
            result = replace(result, gain=result.gain * len(traced), scaled=True)  # x + x is 2 x
        sources = {trace.source for trace in traced}
        alone = len(sources) == 1 and "" not in sources
        varying = self._constants_vary(node, given)
        mixed = len(traced) > 1 and not (alone and not varying)
        if node.op in _CHOICES and result.scaled and mixed:
            return replace(result, varying=None)  # elements of several factors, side by side
        return replace(result, shifted=_union(result.shifted, varying))

    def _quantized(self, node: Node, given: list[Trace | None], traced: list[Trace]) -> Trace:
        """Whole numbers, times steps that may be of several sizes."""
        joined, inputs = self._joined(traced), len(node.inputs)
        plain = Trace(
            joined.roots, joined.moved, scaled=True, source=node.outputs[0], gain=joined.gain
        )
        before = self._facts[node.inputs[0]]
        if joined.rounded or (isinstance(before, Grid) and not before.scalar):
            plain = replace(
                plain, varying=joined.varying, rounded=bool(joined.varying != _ONE_FACTOR)
            )
        place = 4 if node.op == "Trunc" and inputs == 6 else 1
        if node.op == "QuantizeLinear":
            return replace(plain, gain=plain.gain / self._number(node.inputs[1]))
        if inputs <= place:
            return replace(plain, varying=None)
        if given[place] is not None:
            shape = self._shapes.of(node.inputs[place])
            single = shape is not None and all(size == 1 for size in shape)
            return plain if single else replace(plain, varying=None)
        if node.op == "DequantizeLinear":
            plain = replace(plain, gain=plain.gain * self._number(node.inputs[place]))
        along = self._varying_axes(self._facts[node.inputs[place]])
        if node.op == "DequantizeLinear" and along:
            rank, axis = self._shapes.rank(node.inputs[0]), node.attribute("axis", 1)
            known = rank is not None and along == {-1}
            along = frozenset({axis - (rank or 0) if axis >= 0 else axis}) if known else None
        return replace(plain, varying=_union(plain.varying, along))

    def _number(self, tensor: str) -> float:
        """A constant of one value other than 0, else 1."""
        fact = self._facts.get(tensor)
        values = fact.values if isinstance(fact, Constant | Grid) and is_constant(fact) else None
        if values is None or values.size != 1 or not np.isfinite(values).all():
            return 1.0
        return float(values.reshape(-1)[0]) or 1.0

    def _moved(self, node: Node, traced: list[Trace]) -> Trace:
        joined = self._joined(traced)
        if node.op == "Concat" and joined.scaled:
            rank, axis = self._shapes.rank(node.inputs[0]), node.attribute("axis", 1)
            if axis >= 0 and rank is None:
                return replace(joined, moved=True, varying=None)
            beside = frozenset({axis - (rank or 0) if axis >= 0 else axis})
            return replace(joined, moved=True, varying=_union(joined.varying, beside))
        if node.op == "Gather" and (along := self._uneven(node, joined)) != _ONE_FACTOR:
            return replace(joined, moved=True, varying=along, rounded=True)
        varying, shifted = (
            along if node.op == "Concat" or along == _ONE_FACTOR else None
            for along in (joined.varying, joined.shifted)
        )
        return replace(joined, moved=True, varying=varying, shifted=shifted)

    def _uneven(self, node: Node, joined: Trace) -> Axes | None:
        """Axis along which Gather takes some elements more often than others."""
        places = self._facts[node.inputs[1]] if len(node.inputs) == 2 else None
        if self.of(node.inputs[0]) is None or not isinstance(places, Constant):
            return _ONE_FACTOR
        if node.inputs[1] not in self._even:
            counts = Counter(np.asarray(places.values).reshape(-1).tolist()).values()
            self._even[node.inputs[1]] = len(set(counts)) < 2
        rank, axis = self._shapes.rank(node.inputs[0]), node.attribute("axis", 0)
        if self._even[node.inputs[1]] or places.values.ndim != 1 or (rank is None and axis >= 0):
            return _ONE_FACTOR
        return _union(joined.varying, frozenset({axis - (rank or 0) if axis >= 0 else axis}))

    def _affine(self, node: Node) -> Axes | None:
        """Axes along which the gain of a normalization varies."""
        if node.op in ("InstanceNormalization", "GroupNormalization", "BatchNormalization"):
            rank = self._shapes.rank(node.inputs[0])
            last = node.domain != ""  # channels-last
            return None if rank is None else frozenset({-1 if last else 1 - rank})
        if node.op in ("LayerNormalization", "RMSNormalization"):
            axis, rank = node.attribute("axis", -1), self._shapes.rank(node.inputs[0])
            if axis >= 0:
                if rank is None:
                    return None
                axis -= rank
            return frozenset(range(axis, 0))
        return _ONE_FACTOR

    def _product(self, node: Node, given: list[Trace | None], traced: list[Trace]) -> Trace:
        joined = replace(self._joined(traced), scaled=True)
        if node.op == "Range":
            return Trace(None, True, True, None)
        if node.op == "BatchNormalization":
            along = self._affine(node)
        elif node.op == "Pow":
            return self._power(node, given, joined)
        elif len(traced) == 1:
            constant = next(t for t, trace in zip(node.inputs, given, strict=True) if trace is None)
            along = self._varying_axes(self._facts[constant])
        else:
            sources = {trace.source for trace in traced}
            if len(sources) == 1 and sources != {""} and any(t.gated for t in traced):
                # A function of each element by itself, and of its place where constants vary.
                varying = _union(joined.varying, joined.shifted)
                return replace(traced[0], scaled=True, varying=varying, shifted=joined.shifted)
            along = self._both_vary(node)
        if along is None or joined.varying is None:
            return replace(joined, varying=None)
        single = len(traced) == 1 and not along
        if single:
            constant = next(t for t, trace in zip(node.inputs, given, strict=True) if trace is None)
            factor = self._number(constant)
            joined = replace(
                joined, gain=joined.gain * (1 / factor if node.op == "Div" else factor)
            )
        return replace(
            joined,
            varying=_union(joined.varying, along),
            source=traced[0].source if single else "",
            gated=single and traced[0].gated,
        )

    def _power(self, node: Node, given: list[Trace | None], joined: Trace) -> Trace:
        exponent = self._facts[node.inputs[1]]
        if given[1] is None and given[0] is not None:
            values = exponent.values if isinstance(exponent, Constant | Grid) else np.zeros(2)
            if values.size == 1 and float(values.reshape(-1)[0]) <= 1:
                return given[0]
        return replace(joined, varying=None)

    def _both_vary(self, node: Node) -> Axes | None:
        """Axes along which two computed factors vary both."""
        shapes = [self._shapes.of(tensor) for tensor in node.inputs]
        if len(shapes) != 2 or any(s is None for s in shapes):
            return None
        rank = max(len(s or ()) for s in shapes)
        wide = [(1,) * (rank - len(s or ())) + (s or ()) for s in shapes]
        return frozenset(
            axis for axis in range(-rank, 0) if wide[0][axis] != 1 and wide[1][axis] != 1
        )

    def _varying_axes(self, fact: Fact) -> Axes | None:
        """Negative axes along which a constant factor varies."""
        values = fact.values if isinstance(fact, Constant | Grid) else np.ones(1)
        try:
            self._budget.spend(values.size * values.ndim, "a factor")
        except Unprovable:
            return None
        return frozenset(
            axis
            for axis in range(-values.ndim, 0)
            if values.shape[axis] > 1 and np.any(values != np.take(values, [0], axis=axis))
        )


def _union(*axes: Axes | None) -> Axes | None:
    """All of the axes; None where one is None, which stands for any."""
    known = [along for along in axes if along is not None]
    return frozenset().union(*known) if len(known) == len(axes) else None
