"""Accumulator-aware quantization for Brevitas: overflow made impossible, proven, exported."""

from brevitas_axe.errors import AxeError
from brevitas_axe.export import check_finn, export_qonnx, mend_for_finn, prepare_for_finn
from brevitas_axe.export.layers import export_layers
from brevitas_axe.model.apply.weights import apply_plan
from brevitas_axe.model.quantizers import (
    Int8WeightPerChannelFixedPointAXE,
    Int8WeightPerChannelFloatAXE,
    Int8WeightPerTensorFixedPointAXE,
    Int8WeightPerTensorFloatAXE,
)
from brevitas_axe.plan import LayerPrecision, Plan
from brevitas_axe.proof.certificate import Certificate, certify, certify_file
from brevitas_axe.proof.emulator import emulate
from brevitas_axe.run.quantize import QuantizeResult, quantize
from brevitas_axe.run.quantize_blocks import BlocksResult, quantize_blocks
from brevitas_axe.run.solve import axe_gpfq_mode, axe_gptq_mode, axe_qronos_mode

__all__ = [
    "AxeError",
    "BlocksResult",
    "Certificate",
    "Int8WeightPerChannelFixedPointAXE",
    "Int8WeightPerChannelFloatAXE",
    "Int8WeightPerTensorFixedPointAXE",
    "Int8WeightPerTensorFloatAXE",
    "LayerPrecision",
    "Plan",
    "QuantizeResult",
    "apply_plan",
    "axe_gpfq_mode",
    "axe_gptq_mode",
    "axe_qronos_mode",
    "certify",
    "certify_file",
    "check_finn",
    "emulate",
    "export_layers",
    "export_qonnx",
    "mend_for_finn",
    "prepare_for_finn",
    "quantize",
    "quantize_blocks",
]
