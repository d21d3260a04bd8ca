"""Nodes that may hide dot products: named in the certificate, and never counted as proven.

A dot product can be written without MatMul: as products and, somewhere later, a sum over elements
that were multiplied by different factors. So every tensor has a `Trace` of how its elements were
computed, and a sum is harmless only where the trace shows that it adds numbers with one factor, as
pooling does. An operator on no list of known ones is never harmless.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx

from brevitas_axe.proof.certificate.proof import Found
from brevitas_axe.proof.certificate.traces import Traces
from brevitas_axe.proof.graph.flow import local_functions
from brevitas_axe.proof.graph.grid import Fact, Grid
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain, shown, subgraphs
from brevitas_axe.proof.graph.operators import (
    FINN_HARDWARE,
    KINDS,
    QONNX,
    QONNX_DOMAINS,
    Kind,
    fault,
    kind_of,
    operator_set,
)
from brevitas_axe.proof.graph.shapes import Shapes

Functions = dict[tuple[str, str], str]
# Two of them in a chain multiply, without an operator of that name.
_SCALES = (Kind.PRODUCT, Kind.QUANTIZER)
_MOVES = (Kind.MOVE, Kind.STAY, Kind.FRESH, Kind.UNARY)
# Summands of one operator that are compared with each other.
_MAX_TRACES = 256
_ADDS = ("Add", "Sub", "Sum", "Mean")
_DOT_LIKE = (
    *("MatMulInteger", "ConvInteger", "QLinearConv", "QLinearMatMul", "Einsum", "LSTM", "GRU"),
    *("RNN", "Attention", "DeformConv", "DFT", "STFT"),
)


class Hidden:
    """Judges the nodes of one file that are no plain dot products, in execution order."""

    def __init__(self, file: ModelFile, facts: dict[str, Fact], shapes: Shapes) -> None:
        self._file, self._facts = file, facts
        self._shapes = shapes
        self._traces = Traces(file, facts, shapes)
        self.functions = _judged_functions(file)

    def products(self, node: Node) -> Iterator[Found]:
        """An entry for a node that may compute dot products; traces its outputs in any case."""
        reason = self._reason(node)
        self._trace(node)
        if reason and not node.domain.startswith(FINN_HARDWARE):
            yield Found(name=node.name, op=shown(node.op), reason=reason)

    def _trace(self, node: Node) -> None:
        called = (node.domain, node.op) in self.functions
        if called or subgraphs(node.proto):
            inner = _inner_nodes(node.proto, self._file) if called else _within(node.proto)
            multiplies = any(kind_of(proto) not in _MOVES for proto in inner)
            self._traces.call(node, multiplies)
        else:
            self._traces.follow(node)

    def _reason(self, node: Node) -> str:
        """Why a node may compute dot products, or ''."""
        if (node.domain, node.op) in self.functions:
            return self.functions[node.domain, node.op]
        if node.op in ("Loop", "Scan", "SequenceMap") and node.domain == "":
            return f"{node.op} repeats its body, which control flow keeps from a proof; unroll it"
        if subgraphs(node.proto):
            inner, opset = _within(node.proto), self._file.opset()
            return _suspicious(inner, "its subgraph", self.functions, opset)
        kind = kind_of(node)
        if kind is None:
            return _unknown(node)
        if operator_set(node) == "" and (reason := fault(node, self._file.opset())):
            return reason
        if node.op in ("Resize", "Upsample"):
            return _interpolation(node)
        if node.op in ("ReduceMax", "ReduceMin"):
            return self._of_nothing(node)
        if kind in (Kind.SUM, Kind.SQUARES):
            return self._summed(node, squares=kind is Kind.SQUARES)
        if node.op == "BatchNormalization" and _trains(node.proto, self._file.opset()):
            return "it computes the statistics of its input, in training mode; export in eval mode"
        if kind is Kind.NORM and any(node.outputs[1:]):
            return self._summed(node, squares=False)
        if node.op in _ADDS:
            return self._added(node)
        return ""

    def _summed(self, node: Node, squares: bool) -> str:
        trace = self._traces.of(node.inputs[0])
        fact = self._facts[node.inputs[0]]
        if squares:
            weighted = trace is not None
        elif isinstance(fact, Grid) and fact.scalar and not (trace and trace.rounded):
            return ""  # whole steps of one size
        else:
            weighted = trace is not None and trace.weighted_along(self._traces.axes(node))
            if trace is not None and node.op == "ReduceLogSumExp":
                weighted |= trace.shifted is None or bool(trace.shifted)
        if not weighted or self._traces.is_variance(node):
            return ""
        return "it sums the products of elements; write it as MatMul"

    def _of_nothing(self, node: Node) -> str:
        """The largest of no elements is minus infinity, which is on no grid."""
        dims = self._shapes.of(node.inputs[0])
        if not isinstance(self._facts[node.inputs[0]], Grid):
            return ""
        if dims is None or any(size is None or size == 0 for size in dims):
            return "it may look for an extreme among no elements, which is infinite"
        return ""

    def _added(self, node: Node) -> str:
        """Adding pieces of one tensor is a sum over its elements."""
        counts = Counter(filter(None, map(self._traces.of, filter(None, node.inputs))))
        grids = [self._facts[t] for t in node.inputs if t]
        scales = [float(g.scale) if isinstance(g, Grid) and g.scalar else None for g in grids]
        traces = list(counts)
        gains = {round(trace.gain, 6) for trace in traces}
        if None not in scales and len(set(scales)) == 1 and len(gains) < 2:
            return ""  # whole steps of one size
        if len(traces) > _MAX_TRACES and any(t.moved and t.scaled for t in traces):
            return "it adds more tensors than are followed"
        for index, left in enumerate(traces[:_MAX_TRACES]):
            twice = counts[left] > 1
            for right in traces[index if twice else index + 1 : _MAX_TRACES]:
                apart = left.shares(right) and (left.moved or right.moved)
                if apart and (left.scaled or right.scaled):
                    return "it adds products of parts of one tensor; write it as MatMul"
        return ""


def hardware(file: ModelFile) -> Found | None:
    """One entry for all nodes that are FINN's hardware layers already."""
    nodes = [n for n in file.nodes if n.domain.startswith(FINN_HARDWARE)]
    if not nodes:
        return None
    reason = (
        f"the file has {len(nodes)} layers that are already FINN hardware; certify the file "
        "before that conversion"
    )
    return Found(name=nodes[0].name, op=shown(nodes[0].op), reason=reason)


def _unknown(node: Node) -> str:
    domain, op = node.domain, shown(node.op)
    if domain == "":
        if node.op in _DOT_LIKE:
            return f"operator {op} is not supported; export it as MatMul, Gemm or Conv"
        return f"operator '{op}' is unknown, or not known to be harmless"
    return f"operator '{op}' of domain '{shown(domain)}' may hide dot products"


def _interpolation(node: Node) -> str:
    if node.attribute("mode", "nearest") == "nearest":
        return ""
    return f"it interpolates ({shown(node.attribute('mode', ''))}), which sums products"


def _judged_functions(file: ModelFile) -> Functions:
    """(domain, name) of every local function → why its calls may compute dot products, or ''."""
    functions = dict.fromkeys(local_functions(file), "")
    judged = {}
    for (domain, name), function in local_functions(file).items():
        inner = list(function.node)
        judged[domain, name] = ""
        if _shadows(domain, name):
            judged[domain, name] = (
                f"local function '{shown(name)}' has the name of an operator, which other readers "
                "of the file run instead; rename it"
            )
            continue
        for proto in inner:
            # A call of another function counts too: following it could take forever.
            called = (plain_domain(proto.domain), proto.op_type) in functions
            if called or subgraphs(proto):
                judged[domain, name] = _inside(f"local function '{shown(name)}'", proto.op_type)
        if not judged[domain, name]:
            where = f"local function '{shown(name)}'"
            versions = [o.version for o in function.opset_import if not plain_domain(o.domain)]
            judged[domain, name] = _suspicious(inner, where, {}, max(versions, default=1))
    return judged


def _shadows(domain: str, name: str) -> bool:
    """Whether an operator of ONNX or of QONNX has this name already."""
    if domain == "":
        return onnx.defs.has(name)
    return domain in QONNX_DOMAINS and (QONNX, name) in KINDS


def _inner_nodes(proto, file: ModelFile) -> list:
    return list(local_functions(file)[plain_domain(proto.domain), proto.op_type].node)


def _within(proto) -> list:
    """All nodes of a node's subgraphs, however deep."""
    nodes, stack = [], subgraphs(proto)
    while stack:
        graph = stack.pop()
        nodes.extend(graph.node)
        for node in graph.node:
            stack.extend(subgraphs(node))
    return nodes


def _suspicious(inner: list, where: str, functions: Functions, opset: int) -> str:
    """Why nodes that are not followed one by one may compute a dot product, or ''.

    Args:
        inner: the nodes.
        where: they stand.
        functions: of the file, a call of which counts too.
        opset: version of the standard operators there.
    """
    kinds = [(proto, kind_of(proto)) for proto in inner]
    for proto, kind in kinds:
        control = proto.op_type == "If" and plain_domain(proto.domain) == ""
        called = (plain_domain(proto.domain), proto.op_type) in functions
        harmless = control or kind in (*_MOVES, Kind.BINARY, *_SCALES)
        node = Node(proto, shown(proto.name))
        if called or not harmless or fault(node, opset) or _trains(proto, opset):
            return _inside(where, proto.op_type)
    adds = any(proto.op_type in _ADDS for proto, _ in kinds)
    moves = any(kind is Kind.MOVE for _, kind in kinds)
    if adds and moves and any(kind in _SCALES or p.op_type == "Exp" for p, kind in kinds):
        return _inside(where, "Mul' and 'Add")
    return ""


def _trains(proto, opset: int) -> bool:
    """Whether a BatchNormalization computes sums of its input."""
    if proto.op_type != "BatchNormalization":
        return False
    node = Node(proto, "")
    old = opset < 7 and not node.attribute("is_test", 0)
    return old or any(node.outputs[1:]) or bool(node.attribute("training_mode", 0))


def _inside(where: str, op: str) -> str:
    way = "inline it before certifying" if "function" in where else "unroll it"
    return f"{where} contains '{shown(op)}', which keeps what it sums from a proof; {way}"
