"""QONNX files with proven integers, and checks of what FINN and hls4ml build from them."""

from brevitas_axe.export.finn import Finding, check_finn
from brevitas_axe.export.finn.mend import Mending, mend_for_finn
from brevitas_axe.export.finn.prepare import prepare_for_finn
from brevitas_axe.export.hls4ml import (
    Hls4mlProject,
    check_hls4ml,
    export_hls4ml,
    export_layers_alone,
    prepare_for_hls4ml,
)
from brevitas_axe.export.qonnx import export_qonnx

__all__ = [
    "Finding",
    "Hls4mlProject",
    "Mending",
    "check_finn",
    "check_hls4ml",
    "export_hls4ml",
    "export_layers_alone",
    "export_qonnx",
    "mend_for_finn",
    "prepare_for_finn",
    "prepare_for_hls4ml",
]
