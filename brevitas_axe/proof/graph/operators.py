"""Known operators, and what each of them does to its elements.

Every list says what is allowed. An operator on no list, an attribute that its definition does not
have, or a version newer than the installed onnx is never assumed to be harmless.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any

import onnx

from brevitas_axe.proof.graph.modelfile import Node, shown

QONNX = "qonnx.custom_op.general"
CHANNELS_LAST = "qonnx.custom_op.channels_last"
FINN_HARDWARE = "finn.custom_op.fpgadataflow"
QONNX_DOMAINS = (QONNX, "finn.custom_op.general", "onnx.brevitas", "finn", "qonnx")

# Operators of QONNX and the attributes that they may carry.
_QONNX_ATTRIBUTES: dict[str, frozenset[str]] = {
    **dict.fromkeys(("Quant", "IntQuant"), frozenset({"signed", "narrow", "rounding_mode"})),
    "BipolarQuant": frozenset(),
    "FloatQuant": frozenset({"rounding_mode", "has_inf", "has_nan", "has_subnormal", "saturation"}),
    "Trunc": frozenset({"signed", "narrow", "rounding_mode"}),
    "MultiThreshold": frozenset({"out_dtype", "out_scale", "out_bias", "data_layout"}),
    "QuantAvgPool2d": frozenset({"stride", "kernel", "ibits", "obits", "signed", "data_layout"}),
    "Im2Col": frozenset(
        {"stride", "kernel_size", "input_shape", "pad_amount", "pad_value", "depthwise"}
        | {"dilations"}
    ),
    "MaxPoolNHWC": frozenset({"kernel_shape", "pads", "strides", "ceil_mode", "dilations"}),
    "DebugMarker": frozenset({"export_debug_name"}),
    "XnorPopcountMatMul": frozenset(),
}


class Kind(Enum):
    """What an operator does to the elements of its inputs."""

    FRESH = "new numbers: counts, indices, shapes, truth values"
    QUANTIZER = "each element rounded to whole steps, and times the size of its step"
    STAY = "the same elements in the same places"
    MOVE = "the same elements elsewhere, or zeros"
    UNARY = "a function of each element by itself"
    BINARY = "sums or choices of two tensors, element by element"
    PRODUCT = "products of two tensors, element by element"
    SUM = "sums over elements of one tensor"
    SQUARES = "sums over squares or other products of one tensor"
    NORM = "a normalization, which is computed in floating point"


_OPERATORS: dict[Kind, str] = {
    Kind.FRESH: """DynamicQuantizeLinear Shape Size Constant ConstantOfShape
        EyeLike ArgMax ArgMin Equal Greater GreaterOrEqual Less LessOrEqual And Or Xor Not
        IsNaN IsInf NonZero RandomNormal RandomNormalLike RandomUniform RandomUniformLike
        Bernoulli Multinomial BitwiseAnd BitwiseOr BitwiseXor BitwiseNot""",
    Kind.STAY: "Identity Cast CastLike Dropout",
    Kind.MOVE: """Reshape Flatten Transpose Squeeze Unsqueeze Slice Split Concat Expand Tile
        DepthToSpace SpaceToDepth Gather GatherElements GatherND Pad Trilu Compress TopK
        MaxPool GlobalMaxPool ReduceMax ReduceMin ReverseSequence CenterCropPad MaxUnpool
        Resize Upsample OneHot""",
    Kind.UNARY: """Relu Sigmoid Tanh Erf Exp Log Sqrt Abs Neg Floor Ceil Round Sign LeakyRelu Elu
        Selu Celu HardSigmoid HardSwish Softplus Softsign Gelu Mish Swish ThresholdedRelu Clip
        Reciprocal Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Shrink""",
    Kind.BINARY: "Add Sub Min Max Where Sum Mean Mod",
    Kind.QUANTIZER: "QuantizeLinear DequantizeLinear",
    Kind.PRODUCT: "Mul Div Pow PRelu BatchNormalization Range",
    Kind.SUM: """ReduceSum ReduceMean ReduceL1 ReduceLogSum ReduceLogSumExp CumSum AveragePool
        GlobalAveragePool""",
    Kind.SQUARES: "ReduceSumSquare ReduceL2 LpPool GlobalLpPool ReduceProd",
    Kind.NORM: """Softmax LogSoftmax Hardmax LayerNormalization RMSNormalization GroupNormalization
        InstanceNormalization LRN MeanVarianceNormalization LpNormalization""",
}
KINDS: dict[tuple[str, str], Kind] = {
    **{("", op): kind for kind, names in _OPERATORS.items() for op in names.split()},
    **{(QONNX, op): Kind.QUANTIZER for op in ("Quant", "IntQuant", "BipolarQuant", "FloatQuant")},
    (QONNX, "Trunc"): Kind.QUANTIZER,
    (QONNX, "MultiThreshold"): Kind.FRESH,
    (QONNX, "QuantAvgPool2d"): Kind.SUM,
    **{(QONNX, op): Kind.MOVE for op in ("Im2Col", "MaxPoolNHWC")},
    (QONNX, "DebugMarker"): Kind.STAY,
    (CHANNELS_LAST, "MaxPool"): Kind.MOVE,
    (CHANNELS_LAST, "BatchNormalization"): Kind.PRODUCT,
}


def operator_set(node: Node | onnx.NodeProto) -> str:
    """The set that an operator belongs to: "" (ONNX), QONNX under any of its names, or its domain.

    Exporters of torch 1.7 wrote the operators of QONNX without a domain.
    """
    op = node.op if isinstance(node, Node) else node.op_type
    domain = "" if node.domain == "ai.onnx" else node.domain
    known = domain in QONNX_DOMAINS or (domain == "" and not _defined(op))
    return QONNX if known and op in _QONNX_ATTRIBUTES else domain


def kind_of(node: Node | onnx.NodeProto) -> Kind | None:
    """What the operator does, None for one that is not known to be harmless."""
    op = node.op if isinstance(node, Node) else node.op_type
    return KINDS.get((operator_set(node), op))


def fault(node: Node, opset: int) -> str:
    """Why a node is not what its name says, without a full stop; "" if all is well.

    Args:
        node: any node.
        opset: version of the standard operators that the file imports.
    """
    group, where = operator_set(node), f"{shown(node.op)} '{node.name}'"
    names = [a.name for a in node.proto.attribute]
    if group == QONNX:
        unknown = next((n for n in names if n not in _QONNX_ATTRIBUTES[node.op]), None)
        return "" if unknown is None else f"{where} has the unknown attribute '{shown(unknown)}'"
    if group == CHANNELS_LAST:
        group = ""
    if group:
        return f"operator '{shown(node.op)}' of domain '{shown(group)}' is unknown"
    if opset > onnx.defs.onnx_opset_version():
        return f"{where} is of operator set {opset}, newer than the installed onnx"
    schema = _schema(node.op, opset)
    if schema is None:
        return f"operator '{shown(node.op)}' is unknown in operator set {opset}"
    types, required, fewest, most = schema
    for attribute in node.proto.attribute:
        if types.get(attribute.name) != attribute.type:
            return f"{where} has the unknown attribute '{shown(attribute.name)}'"
    missing = next((n for n in required if n not in names), None)
    if missing is not None:
        return f"{where} lacks the attribute '{missing}'"
    if not fewest <= len(node.proto.input) <= most:
        return f"{where} has {len(node.proto.input)} inputs"
    return ""


@cache
def _defined(op: str) -> bool:
    return onnx.defs.has(op)


@cache
def _schema(op: str, opset: int) -> tuple[dict[str, int], list[str], int, int] | None:
    """(attribute types, required attributes, fewest inputs, most inputs), None where undefined."""
    try:
        schema: Any = onnx.defs.get_schema(op, opset, "")
    except Exception:  # onnx raises a class of its own, which it does not export
        return None
    if schema.deprecated:
        return None
    types = {name: int(a.type.value) for name, a in schema.attributes.items()}
    required = [name for name, a in schema.attributes.items() if a.required]
    return types, required, schema.min_input, schema.max_input
