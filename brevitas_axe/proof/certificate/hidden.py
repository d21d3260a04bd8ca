"""Nodes that may hide dot products: named in the certificate, and never taken as proven."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from brevitas_axe.proof.certificate.proof import Found
from brevitas_axe.proof.graph.flow import QONNX_DOMAINS, local_functions
from brevitas_axe.proof.graph.grid import Fact, Grid, is_constant
from brevitas_axe.proof.graph.modelfile import ModelFile, Node, plain_domain, shown, subgraphs
from brevitas_axe.proof.graph.names import Names
from brevitas_axe.proof.graph.quantizers import constant_values

_DOT_LIKE = {
    *("MatMul", "Gemm", "Conv", "ConvTranspose", "MatMulInteger", "ConvInteger", "QLinearConv"),
    *("QLinearMatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention", "DeformConv", "DFT", "STFT"),
    *("LinearAttention", "CausalConvWithState"),
}
_QONNX_SAFE = {
    *("Quant", "IntQuant", "BipolarQuant", "FloatQuant", "Trunc", "MultiThreshold"),
    *("QuantAvgPool2d", "Im2Col", "MaxPoolNHWC", "DebugMarker"),
}
_CHANNELS_LAST_SAFE = {"BatchNormalization", "MaxPool"}


Functions = dict[tuple[str, str], str]


def suspicious_functions(file: ModelFile) -> Functions:
    """(domain, name) of every local function → why its calls may compute dot products, or ''."""
    functions = dict.fromkeys(local_functions(file), "")
    for (domain, name), function in local_functions(file).items():
        for inner in function.node:
            # A call of another function counts too: following it could take forever.
            called = (plain_domain(inner.domain), inner.op_type) in functions
            if called or inner.op_type in _DOT_LIKE or _suspicion(inner, functions):
                functions[domain, name] = (
                    f"local function '{shown(name)}' contains '{shown(inner.op_type)}'; inline it "
                    "before certifying"
                )
    return functions


def hidden_products(
    node: Node, facts: dict[str, Fact], functions: Functions, names: Names
) -> Iterator[Found]:
    """Entries for a node that is no plain dot product but may compute some."""
    reason = _suspicion(node.proto, functions)
    if not reason and node.domain == "" and node.op == "ReduceSum":
        reason = _product_sum(node, facts, names)
    if reason:
        yield Found(name=node.name, op=shown(node.op), reason=reason)


def _suspicion(proto: onnx.NodeProto, functions: Functions) -> str:
    """Why a node may compute dot products, or ''."""
    domain, op = plain_domain(proto.domain), proto.op_type
    if (domain, op) in functions:
        return functions[domain, op]
    for graph in subgraphs(proto):
        for inner in graph.node:
            if inner.op_type in _DOT_LIKE or _suspicion(inner, functions):
                return (
                    f"its subgraph contains {shown(inner.op_type)} '{shown(inner.name)}', which "
                    "control flow keeps from a proof; unroll it"
                )
    if domain == "":
        if op in _DOT_LIKE:
            return f"operator {op} is not supported; export it as MatMul, Gemm or Conv"
        return "" if onnx.defs.has(op) else f"operator '{shown(op)}' is unknown"
    safe = domain in QONNX_DOMAINS and op in _QONNX_SAFE
    if safe or (domain == "qonnx.custom_op.channels_last" and op in _CHANNELS_LAST_SAFE):
        return ""
    return f"operator '{shown(op)}' of domain '{shown(domain)}' may hide dot products"


def _product_sum(node: Node, facts: dict[str, Fact], names: Names) -> str:
    """Mul and ReduceSum together are a dot product."""
    product = names.producer(node.inputs[0]) if node.inputs else None
    if product is None or product.op != "Mul" or product.domain != "":
        return ""
    operands = [facts[tensor] for tensor in product.inputs]
    constants = [constant_values(f, "a factor") for f in operands if is_constant(f)]
    weighted = any(constant.size > 1 for constant in constants)
    if weighted or all(isinstance(f, Grid) for f in operands):
        return f"it sums the products of '{product.name}'; write it as MatMul"
    return ""
