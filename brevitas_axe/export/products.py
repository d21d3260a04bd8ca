"""Names of attention products in a file: those that plans and the live certificate have."""

from __future__ import annotations

import re
from collections import Counter

import onnx

from brevitas_axe.model.attention_products import PRODUCTS
from brevitas_axe.proof.graph.names import dotted

# Quantizer of a product's left operand → the product.
_LEFT = {left: product for product, (left, _) in PRODUCTS.items()}
_TRACED = re.compile(rf"/?(.+)/({'|'.join(_LEFT)})/act_quant/.*")


def with_product_names(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Names each product of two quantized activations as its module does, in place.

    Torch writes the module of a quantizer into the name of what it computes. A product that is
    computed again has a number behind its name, which the certificate takes off.

    Args:
        proto: as `streamlined` gives it.
    """
    seen: Counter[str] = Counter()
    for node in proto.graph.node:
        traced = _TRACED.fullmatch(node.input[0]) if node.op_type == "MatMul" else None
        if traced is None:
            continue
        name = f"{dotted(traced[1])}.{_LEFT[traced[2]]}"
        node.name = f"{name}_{seen[name]}" if seen[name] else name
        seen[name] += 1
    return proto
