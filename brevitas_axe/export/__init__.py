"""QONNX files that carry the integers that were proven, and what FINN makes of them."""

from brevitas_axe.export.finn import Finding, check_finn
from brevitas_axe.export.finn.mend import Change, mend_for_finn
from brevitas_axe.export.finn.prepare import prepare_for_finn
from brevitas_axe.export.qonnx import export_qonnx

__all__ = [
    "Change",
    "Finding",
    "check_finn",
    "export_qonnx",
    "mend_for_finn",
    "prepare_for_finn",
]
