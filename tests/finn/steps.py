"""The transformations that flow.py applies, in the order of FINN's builder.

Where this differs from `finn.builder`: 1-D convolutions are told apart from channels-last ones,
graphs that fork and join are streamlined as in FINN's ResNet flow, and global average pooling
becomes hardware before everything else, since the builder's order leaves its division in float
between two hardware layers.
"""

from __future__ import annotations

from finn.transformation.fpgadataflow.convert_to_hw.concat import InferConcatLayer
from finn.transformation.fpgadataflow.convert_to_hw.conv_inp_gen import (
    InferConvInpGen,
)
from finn.transformation.fpgadataflow.convert_to_hw.duplicate_streams import (
    InferDuplicateStreamsLayer,
)
from finn.transformation.fpgadataflow.convert_to_hw.elementwise_binary_operation import (
    InferElementwiseBinaryOperation,
)
from finn.transformation.fpgadataflow.convert_to_hw.fm_padding import (
    InferFMPadding,
)
from finn.transformation.fpgadataflow.convert_to_hw.global_acc_pool import (
    InferGlobalAccPoolLayer,
)
from finn.transformation.fpgadataflow.convert_to_hw.label_select import (
    InferLabelSelectLayer,
)
from finn.transformation.fpgadataflow.convert_to_hw.pool import InferPool
from finn.transformation.fpgadataflow.convert_to_hw.quantized_matrix_vector_activation import (
    InferQuantizedMatrixVectorActivation,
)
from finn.transformation.fpgadataflow.convert_to_hw.thresholding import (
    InferThresholdingLayer,
)
from finn.transformation.fpgadataflow.convert_to_hw.vector_vector_activation import (
    InferVectorVectorActivation,
)
from finn.transformation.fpgadataflow.minimize_accumulator_width import (
    MinimizeAccumulatorWidth,
)
from finn.transformation.fpgadataflow.minimize_weight_bit_width import (
    MinimizeWeightBitWidth,
)
from finn.transformation.move_reshape import RemoveCNVtoFCFlatten
from finn.transformation.qonnx.convert_qonnx_to_finn import ConvertQONNXtoFINN
from finn.transformation.streamline import absorb, reorder
from finn.transformation.streamline.collapse_repeated import (
    CollapseRepeatedAdd,
    CollapseRepeatedMul,
)
from finn.transformation.streamline.round_thresholds import RoundAndClipThresholds
from finn.transformation.streamline.sign_to_thres import ConvertSignToThres
from qonnx.core.data_layout import NCHW
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.base import Transformation
from qonnx.transformation.batchnorm_to_affine import BatchNormToAffine
from qonnx.transformation.change_3d_tensors_to_4d import Change3DTo4DTensors
from qonnx.transformation.fold_constants import FoldConstants
from qonnx.transformation.general import (
    ConvertDivToMul,
    ConvertSubToAdd,
    GiveReadableTensorNames,
    GiveUniqueNodeNames,
    RemoveStaticGraphInputs,
    RemoveUnusedTensors,
    SortGraph,
)
from qonnx.transformation.infer_data_layouts import InferDataLayouts
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.transformation.infer_shapes import InferShapes
from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul
from qonnx.transformation.remove import RemoveIdentityOps

# FINN's Streamline, which renames and infers everything after each of these, ten times slower.
LINEAR = (
    # First, or a signed quantizer that feeds an addition and a padded layer goes wrong.
    reorder.MoveMulPastFork(),
    ConvertSubToAdd(),
    ConvertDivToMul(),
    BatchNormToAffine(),
    ConvertSignToThres(),
    reorder.MoveMulPastMaxPool(),
    absorb.AbsorbScalarBiasIntoMultiThreshold(),
    reorder.MoveScalesPastIm2Col(),
    reorder.MoveScalarLinearPastInvariants(),
    reorder.MoveAddPastMul(),
    reorder.MoveScalarAddPastMatMul(),
    reorder.MoveAddPastConv(),
    reorder.MoveScalarMulPastMatMul(),
    reorder.MoveScalarMulPastConv(),
    reorder.MoveAddPastMul(),
    CollapseRepeatedAdd(),
    CollapseRepeatedMul(),
    reorder.MoveMulPastMaxPool(),
    absorb.AbsorbAddIntoMultiThreshold(),
    absorb.FactorOutMulSignMagnitude(),
    absorb.AbsorbMulIntoMultiThreshold(),
    absorb.Absorb1BitMulIntoMatMul(),
    absorb.Absorb1BitMulIntoConv(),
    RemoveIdentityOps(),
)
# What its StreamlinePlus adds for graphs that fork and join.
RESIDUAL = (
    reorder.MoveLinearPastEltwiseAdd(),
    reorder.MoveChannelwiseLinearPastFork(),
    reorder.MoveMulPastJoinAdd(),
    reorder.MoveAddPastJoinAdd(),
    reorder.MoveConstMulPastJoinMul(),
    reorder.MoveAffinePastJoinConcat(),
    reorder.MoveMulPastJoinConcat(),
    reorder.MoveAddPastJoinConcat(),
)
LAYOUT = (
    reorder.MakeMaxPoolNHWC(),
    reorder.MoveTransposePastFork(),
    reorder.MoveTransposePastEltwise(),
    reorder.MoveTransposePastJoinAdd(),
    reorder.MoveTransposePastJoinMul(),
    reorder.MoveTransposePastJoinConcat(),
    absorb.AbsorbTransposeIntoMultiThreshold(),
    absorb.AbsorbConsecutiveTransposes(),
)
HARDWARE = (
    InferQuantizedMatrixVectorActivation(),
    InferVectorVectorActivation(),
    InferLabelSelectLayer(),
    InferThresholdingLayer(),
    InferFMPadding(),
    InferPool(),
    InferConvInpGen(),
    InferConcatLayer(),
    RemoveCNVtoFCFlatten(),
    InferElementwiseBinaryOperation(),
    InferDuplicateStreamsLayer(),
    absorb.AbsorbConsecutiveTransposes(),
    RemoveCNVtoFCFlatten(),
)
MINIMIZE = (
    MinimizeWeightBitWidth(),
    MinimizeAccumulatorWidth(),
    InferDataTypes(),
    RoundAndClipThresholds(),
    InferDataTypes(),
    MinimizeWeightBitWidth(),
    InferDataTypes(),
)
TIDY = (
    InferShapes(),
    FoldConstants(),
    GiveUniqueNodeNames(),
    GiveReadableTensorNames(),
    InferDataTypes(),
    InferDataLayouts(),
    RemoveStaticGraphInputs(),
    RemoveUnusedTensors(),
    SortGraph(),
)


def apply(model: ModelWrapper, *transformations: Transformation) -> ModelWrapper:
    for transformation in transformations:
        model = model.transform(transformation)
    return model


def converted(model: ModelWrapper) -> ModelWrapper:
    return apply(model, ConvertQONNXtoFINN(), *TIDY)


def streamlined(model: ModelWrapper) -> ModelWrapper:
    rows = any(len(model.get_tensor_shape(i.name) or ()) == 3 for i in model.graph.input)
    if rows and model.get_nodes_by_op_type("Conv"):
        model = _with_four_axes(model)
    model = apply(model, reorder.MoveMulPastAdd(), absorb.AbsorbScalarBiasIntoMultiThreshold())
    model = _repeat(model, *LINEAR, *RESIDUAL)
    model = apply(model, LowerConvsToMatMul())
    model = _repeat(model, *LAYOUT, *LINEAR)
    return apply(model, absorb.AbsorbScalarMulAddIntoTopK(), *TIDY, RoundAndClipThresholds())


def hardware(model: ModelWrapper, standalone_thresholds: bool) -> ModelWrapper:
    model = apply(
        model,
        InferGlobalAccPoolLayer(),
        absorb.AbsorbTransposeIntoMultiThreshold(),
        absorb.AbsorbMulIntoMultiThreshold(),
        InferDataTypes(),
        RoundAndClipThresholds(),
    )
    if standalone_thresholds:
        model = apply(model, InferThresholdingLayer())
    return apply(model, *HARDWARE, *TIDY)


def minimized(model: ModelWrapper) -> ModelWrapper:
    return apply(model, *MINIMIZE)


def _with_four_axes(model: ModelWrapper) -> ModelWrapper:
    """[N, C, W] → [N, C, W, 1].

    qonnx takes three axes for channels-last, and FINN would leave a Transpose behind the first
    thresholds; from torch they are channels-first.
    """
    model = apply(model, Change3DTo4DTensors())
    model.set_tensor_layout(model.graph.input[0].name, NCHW)
    for node in model.get_nodes_by_op_type("MultiThreshold"):
        getCustomOp(node).set_nodeattr("data_layout", "NCHW")
    return model


def _repeat(model: ModelWrapper, *transformations: Transformation) -> ModelWrapper:
    """Applies all of them until the operators stay the same."""
    before = None
    while before != (before := [n.op_type for n in model.graph.node]):
        model = apply(model, *transformations, *TIDY)
    return model
