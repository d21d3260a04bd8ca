"""QONNX files that carry the integers that were proven."""

from brevitas_axe.export.qonnx import export_qonnx

__all__ = ["export_qonnx"]
